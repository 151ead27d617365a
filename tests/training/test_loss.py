import pytest
import torch
from torch.nn import functional as F

from onward.batches import NO_TARGET
from onward.training.loss import summed_loss

N, D, V = 37, 16, 50


@pytest.mark.parametrize("chunk", [1, 8, 37, 100])
@pytest.mark.parametrize("with_bias", [False, True])
def test_loss_and_gradients_equal_the_plain_cross_entropy(chunk: int, with_bias: bool) -> None:
    random = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, D, generator=random, dtype=torch.float32) for n in (N, V))
    bias = torch.randn(V, generator=random) if with_bias else None
    labels = torch.randint(0, V, (N,), generator=random)
    labels[[0, 7, 8, N - 1]] = NO_TARGET

    def gradients(chunked: bool) -> list[torch.Tensor]:
        leaves = [x.clone().requires_grad_() for x in (hidden, weight, bias) if x is not None]
        h, w, b = leaves[0], leaves[1], leaves[2] if with_bias else None
        loss = (
            summed_loss(h, w, labels, chunk, b)
            if chunked
            else F.cross_entropy(F.linear(h, w, b), labels, ignore_index=NO_TARGET, reduction="sum")
        )
        (loss / N).backward()
        return [loss.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]

    found, expected = gradients(chunked=True), gradients(chunked=False)
    assert len(found) == 3 + with_bias
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_large_logits_do_not_overflow() -> None:
    hidden, weight = torch.full((2, 4), 100.0), torch.full((3, 4), 100.0)
    assert torch.isfinite(summed_loss(hidden, weight, torch.tensor([0, 2]), 8))


def test_no_gradient_is_formed_when_none_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    formed = []
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: formed.append(1))
    weight = torch.randn(V, D, requires_grad=True)
    with torch.no_grad():
        loss = summed_loss(torch.randn(4, D), weight, torch.zeros(4, dtype=torch.long), 2)
    assert not loss.requires_grad
    assert not formed
