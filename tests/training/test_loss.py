"""The chunked cross-entropy against PyTorch's own in float64."""

from dataclasses import dataclass

import pytest
import torch
from torch.nn import functional as F

from onward.batches import NO_TARGET
from onward.training import loss as module
from onward.training.loss import summed_loss

N, D, V = 37, 16, 50


@dataclass(frozen=True)
class Head:
    """Inputs of the loss. Scales are of the logits' standard deviation."""

    hidden: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    labels: torch.Tensor

    @staticmethod
    def random(scale: float = 1.0, with_bias: bool = False, dtype: torch.dtype = torch.float32) -> "Head":
        random = torch.Generator().manual_seed(0)
        hidden = torch.randn(N, D, generator=random) * scale / D**0.5
        weight = torch.randn(V, D, generator=random)
        bias = torch.randn(V, generator=random) if with_bias else None
        labels = torch.randint(0, V, (N,), generator=random)
        labels[[0, 7, 8, N - 1]] = NO_TARGET
        return Head(hidden.to(dtype), weight, bias, labels)

    def leaves(self, dtype: torch.dtype | None = None) -> list[torch.Tensor]:
        tensors = [x for x in (self.hidden, self.weight, self.bias) if x is not None]
        return [x.detach().clone().to(dtype or x.dtype).requires_grad_() for x in tensors]


def chunked(head: Head, chunk: int, softcap: float | None = None) -> list[torch.Tensor]:
    """The loss and the gradients of hidden states, weight and bias."""
    leaves = head.leaves()
    loss = summed_loss(leaves[0], leaves[1], head.labels, chunk, leaves[2] if len(leaves) > 2 else None, softcap)
    (loss / N).backward()
    return [loss.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def exact(head: Head, softcap: float | None = None) -> list[torch.Tensor]:
    """The same by PyTorch's cross-entropy in float64."""
    leaves = head.leaves(torch.float64)
    logits = F.linear(*leaves)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    loss = F.cross_entropy(logits, head.labels, ignore_index=NO_TARGET, reduction="sum")
    (loss / N).backward()
    return [loss.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


@pytest.mark.parametrize("chunk", [1, 7, N, 100])
@pytest.mark.parametrize("with_bias", [False, True], ids=["no-bias", "bias"])
@pytest.mark.parametrize("softcap", [None, 1.5, 30.0])
def test_loss_and_gradients_equal_the_plain_cross_entropy(chunk: int, with_bias: bool, softcap: float | None) -> None:
    head = Head.random(2.0, with_bias)
    found, expected = chunked(head, chunk, softcap), exact(head, softcap)
    assert len(found) == 3 + with_bias
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-4, 1e2, 1e4])
@pytest.mark.parametrize("softcap", [None, 30.0])
def test_logits_of_every_size_keep_the_precision_of_fp32(scale: float, softcap: float | None) -> None:
    head = Head.random(scale, with_bias=scale < 1)
    # Logits in fp32 themselves are off by 1e-7 of their size.
    for a, b in zip(chunked(head, 8, softcap), exact(head, softcap), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=2e-5, atol=1e-5)


def test_a_certain_token_costs_nothing_and_a_hopeless_one_its_distance() -> None:
    hidden = torch.eye(2, 4)
    weight = torch.zeros(3, 4)
    weight[1, 0], weight[2, 1] = 1e6, 3e7
    loss = summed_loss(hidden[:1], weight, torch.tensor([1]), 8)
    assert loss.item() == 0.0
    assert summed_loss(hidden[1:], weight, torch.tensor([0]), 8).item() == 3e7


def test_a_nearly_certain_token_among_large_logits_keeps_its_small_loss() -> None:
    # log-sum-exp of [20000, 20000 - 8] is 20000.0003354, which fp32 cannot hold apart from 20000.
    weight = torch.tensor([[20000.0], [19992.0]])
    loss = summed_loss(torch.ones(1, 1), weight, torch.tensor([0]), 8)
    assert loss.item() == pytest.approx(torch.tensor(-8.0).exp().log1p().item(), rel=1e-4)


@pytest.mark.parametrize("with_bias", [False, True], ids=["no-bias", "bias"])
def test_gradients_are_the_slopes_of_the_loss(with_bias: bool) -> None:
    head = Head.random(2.0, with_bias)
    random = torch.Generator().manual_seed(1)
    leaves = head.leaves()
    gradients = chunked(head, 7, 3.0)[1:]
    for number, leaf in enumerate(leaves):
        way = torch.randn(leaf.shape, generator=random)
        ends = []
        for sign in (-1, 1):
            moved = [x.detach().clone() for x in leaves]
            moved[number] += sign * 1e-2 * way
            ends.append(exact(Head(moved[0], moved[1], moved[2] if with_bias else None, head.labels), 3.0)[0])
        slope = (ends[1] - ends[0]).item() / 2e-2 / N
        assert (gradients[number] * way).sum().item() == pytest.approx(slope, rel=1e-2, abs=1e-4)


def test_positions_without_a_target_add_nothing() -> None:
    head = Head.random()
    labelled = head.labels != NO_TARGET
    few = Head(head.hidden[labelled], head.weight, None, head.labels[labelled])
    all_, some = chunked(head, 7), chunked(few, 7)
    torch.testing.assert_close(all_[0], some[0])
    torch.testing.assert_close(all_[1][labelled], some[1])
    assert not all_[1][~labelled].any()
    torch.testing.assert_close(all_[2], some[2])


def test_nothing_labelled_is_a_loss_of_zero_with_gradients_of_zero() -> None:
    head = Head.random(1e4, with_bias=True)
    none = Head(head.hidden, head.weight, head.bias, torch.full((N,), NO_TARGET))
    for tensor in chunked(none, 7, 30.0):
        assert torch.equal(tensor, torch.zeros_like(tensor))


def test_bf16_logits_get_an_fp32_softmax_and_fp32_weight_gradients() -> None:
    head = Head.random(2.0, with_bias=True, dtype=torch.bfloat16)
    found = chunked(head, 7)
    assert [tensor.dtype for tensor in found] == [torch.float32, torch.bfloat16, torch.float32, torch.float32]
    rounded = Head(head.hidden, head.weight.bfloat16(), head.bias, head.labels)
    for a, b in zip(found, exact(rounded), strict=True):
        assert (a.double() - b).norm() < 0.01 * b.norm()


def test_bf16_sums_over_many_chunks_are_kept_in_fp32() -> None:
    # In bf16 a total stops growing at 256 times its terms.
    hidden = torch.ones(2000, 1, dtype=torch.bfloat16)
    weight, bias = torch.zeros(2, 1, requires_grad=True), torch.zeros(2, requires_grad=True)
    loss = summed_loss(hidden, weight, torch.zeros(2000, dtype=torch.long), 1, bias)
    loss.backward()
    assert loss.item() == pytest.approx(2000 * torch.tensor(2.0).log().item(), rel=1e-5)
    for tensor in (weight, bias):
        assert tensor.grad is not None
        assert tensor.grad.flatten().tolist() == [-1000.0, 1000.0]


def test_the_gradient_is_scaled_by_what_the_sum_is_divided_by() -> None:
    head = Head.random(2.0, with_bias=True)
    leaves = [head.leaves(), head.leaves()]
    for (h, w, b), factor in zip(leaves, (1.0, 1 / 1234), strict=True):
        (summed_loss(h, w, head.labels, 7, b) * factor).backward()
    for one, scaled in zip(*leaves, strict=True):
        assert one.grad is not None
        assert scaled.grad is not None
        torch.testing.assert_close(scaled.grad * 1234, one.grad)


@pytest.mark.parametrize("divisor", [777, 1234, 128_001])
def test_the_scale_is_not_rounded_to_bf16(divisor: int) -> None:
    # Rounded, it would make the gradients of the hidden states up to 0.4 % larger or smaller than the weight's.
    head = Head.random(2.0, dtype=torch.bfloat16)
    gradients = []
    for scale in (1.0, 1 / divisor):
        leaves = head.leaves()
        (summed_loss(leaves[0], leaves[1], head.labels, 7) * scale).backward()
        assert leaves[0].grad is not None
        gradients.append(leaves[0].grad.double() / scale)
    ratio = (gradients[1] * gradients[0]).sum() / gradients[0].square().sum()
    assert ratio.item() == pytest.approx(1.0, abs=3e-4)


def test_a_tied_weight_gets_the_gradients_of_both_its_uses() -> None:
    head = Head.random()
    ids = torch.arange(N) % V
    weights = [head.weight.clone().requires_grad_() for _ in range(2)]
    summed_loss(F.embedding(ids, weights[0]), weights[0], head.labels, 7).backward()
    logits = F.embedding(ids, weights[1]) @ weights[1].T
    F.cross_entropy(logits, head.labels, ignore_index=NO_TARGET, reduction="sum").backward()
    torch.testing.assert_close(weights[0].grad, weights[1].grad, rtol=1e-4, atol=1e-5)


def test_no_more_logits_exist_at_a_time_than_a_chunk_has(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []

    def linear(*arguments: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = torch.addmm(torch.zeros(V), arguments[0], arguments[1].T)
        shapes.append(tuple(out.shape))
        return out

    monkeypatch.setattr(module.F, "linear", linear)
    chunked(Head.random(), 10)
    assert shapes == [(10, V), (10, V), (10, V), (7, V)]


def test_no_gradient_is_formed_when_none_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    formed = []
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: formed.append(1))
    monkeypatch.setattr(module, "_accumulate", lambda *a: formed.append(2))
    weight = torch.randn(V, D, requires_grad=True)
    with torch.no_grad():
        loss = summed_loss(torch.randn(4, D), weight, torch.zeros(4, dtype=torch.long), 2)
    assert not loss.requires_grad
    assert not formed
