"""KL(base || model) formed in chunks, against PyTorch's own gradients of the plain formula."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from onward.batches import NO_TARGET
from onward.training import loss as module
from onward.training.loss import Towards, summed_loss, summed_objective

N, D, V = 37, 16, 50
LABELLED = [n for n in range(N) if n not in (0, 7, 8, 36)]
REPLAYED = torch.tensor([n for n in LABELLED if 3 <= n < 20])


class Case:
    """A model's and a base's hidden states and heads; scales are of the logits' standard deviation."""

    def __init__(self, with_bias: bool = False, scale: float = 2.0, dtype: torch.dtype = torch.float32) -> None:
        random = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=random)

        self.hidden, self.base_hidden = ((normal(N, D) * scale / D**0.5).to(dtype) for _ in range(2))
        self.weight, self.base_weight = normal(V, D), normal(V, D)
        self.bias, self.base_bias = (normal(V), normal(V)) if with_bias else (None, None)
        self.labels = torch.full((N,), NO_TARGET)
        self.labels[LABELLED] = torch.randint(0, V, (len(LABELLED),), generator=random)

    def leaves(self, dtype: torch.dtype | None = None) -> list[torch.Tensor]:
        tensors = [x for x in (self.hidden, self.weight, self.bias) if x is not None]
        return [x.detach().clone().to(dtype or x.dtype).requires_grad_() for x in tensors]

    def towards(self, weight: float) -> Towards:
        return Towards(weight, REPLAYED, self.base_hidden[REPLAYED], self.base_weight, self.base_bias)

    def chunked(self, weight: float, chunk: int = 8, softcap: float | None = None) -> list[torch.Tensor]:
        """Objective, cross-entropy, divergence and the gradients of the first, divided by N."""
        leaves = self.leaves()
        bias = leaves[2] if len(leaves) > 2 else None
        found = summed_objective(leaves[0], leaves[1], self.labels, chunk, bias, softcap, False, self.towards(weight))
        (found[0] / N).backward()
        return [*found.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]

    def exact(self, weight: float, softcap: float | None = None) -> list[torch.Tensor]:
        """The same by the plain formula in float64."""
        leaves = self.leaves(torch.float64)

        def capped(logits: torch.Tensor) -> torch.Tensor:
            return logits if softcap is None else softcap * torch.tanh(logits / softcap)

        base = [x for x in (self.base_hidden, self.base_weight, self.base_bias) if x is not None]
        log_p = capped(F.linear(*leaves)).log_softmax(-1)
        log_base = capped(F.linear(*(x.double() for x in base))).log_softmax(-1)
        divergence = (log_base.exp() * (log_base - log_p))[REPLAYED].sum()
        loss = F.nll_loss(log_p, self.labels, ignore_index=NO_TARGET, reduction="sum")
        objective = loss + weight * divergence
        (objective / N).backward()
        figures = [each.detach() for each in (objective, loss, divergence)]
        return [*figures, *(leaf.grad for leaf in leaves if leaf.grad is not None)]


@pytest.mark.parametrize("chunk", [1, 7, 100])
@pytest.mark.parametrize("with_bias", [False, True], ids=["no-bias", "bias"])
@pytest.mark.parametrize("softcap", [None, 1.5, 30.0])
def test_values_and_gradients_are_those_of_the_plain_formula(
    chunk: int, with_bias: bool, softcap: float | None
) -> None:
    case = Case(with_bias)
    found, expected = case.chunked(0.7, chunk, softcap), case.exact(0.7, softcap)
    assert len(found) == 5 + with_bias
    assert expected[2] > 1, "nothing diverges"
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-6, atol=1e-6)


def test_a_model_that_is_its_base_has_no_divergence_and_the_gradient_of_the_loss() -> None:
    case = Case(with_bias=True)
    case.base_hidden, case.base_weight, case.base_bias = case.hidden, case.weight, case.bias
    found, without = case.chunked(5.0), case.chunked(0.0)
    assert found[2] == 0
    for a, b in zip(found, without, strict=True):
        assert torch.equal(a, b)


def test_only_positions_asked_for_are_drawn() -> None:
    with_it, without = Case().chunked(3.0)[3], Case().chunked(0.0)[3]
    changed = (with_it != without).any(dim=1).nonzero()[:, 0]
    assert changed.tolist() == REPLAYED.tolist()


def test_no_position_is_no_divergence() -> None:
    case = Case()
    leaves = [case.leaves(), case.leaves()]
    nothing = Towards(3.0, REPLAYED[:0], case.base_hidden[:0], case.base_weight, None)
    found = summed_objective(leaves[0][0], leaves[0][1], case.labels, 8, None, None, False, nothing)
    loss = summed_loss(leaves[1][0], leaves[1][1], case.labels, 8)
    assert found.tolist() == [loss.item(), loss.item(), 0.0]
    found[0].backward()
    loss.backward()
    assert all(torch.equal(_grad(a), _grad(b)) for a, b in zip(*leaves, strict=True))


def test_logits_in_bf16_get_an_fp32_softmax() -> None:
    case = Case(dtype=torch.bfloat16)
    rounded = Case(dtype=torch.bfloat16)
    rounded.weight, rounded.base_weight = case.weight.bfloat16(), case.base_weight.bfloat16()
    for a, b in zip(case.chunked(0.7), rounded.exact(0.7), strict=True):
        assert (a.double() - b).norm() < 0.01 * b.norm()


@pytest.mark.parametrize("wanted", ["hidden", "weight", "bias"])
def test_only_the_gradients_that_are_asked_for_are_formed(wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(with_bias=True)
    names = ("hidden", "weight", "bias")
    leaves = [leaf.requires_grad_(name == wanted) for name, leaf in zip(names, case.leaves(), strict=True)]
    formed = _count(monkeypatch, module, "_accumulate")
    found = summed_objective(leaves[0], leaves[1], case.labels, 8, leaves[2], None, False, case.towards(0.7))
    found[0].backward()
    assert [name for name, leaf in zip(names, leaves, strict=True) if leaf.grad is not None] == [wanted]
    expected = case.exact(0.7)[3 + names.index(wanted)]
    torch.testing.assert_close(_grad(leaves[names.index(wanted)]).double() / N, expected, rtol=1e-5, atol=1e-6)
    assert bool(formed) == (wanted == "weight")


def _count(monkeypatch: pytest.MonkeyPatch, place: Any, name: str) -> list[int]:
    calls: list[int] = []
    as_ever: Callable[..., Any] = getattr(place, name)
    monkeypatch.setattr(place, name, lambda *a: calls.append(1) or as_ever(*a))
    return calls


def _grad(leaf: torch.Tensor) -> torch.Tensor:
    assert leaf.grad is not None
    return leaf.grad
