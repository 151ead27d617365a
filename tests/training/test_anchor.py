"""The pull to the base's weights: what it is the limit of, where it ends, and what it leaves alone."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from onward.training import anchor as module
from onward.training.anchor import Anchor
from onward.training.launch import Place
from onward.training.ranks import Ranks

ALONE = Ranks(Place(), torch.device("cpu"))
RATE = 1e-2
UPDATED, LEFT_OUT = torch.tensor(0.0), torch.tensor(1.0)


def parameters_of(width: int = 12, scale: float = 0.3) -> dict[str, torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {"matrix": (width, width), "norm": (width,), "embeddings": (7, width)}
    return {n: torch.nn.Parameter(scale * torch.randn(*shape, generator=generator)) for n, shape in shapes.items()}


def optimizer_of(parameters: dict[str, torch.nn.Parameter], rate: float = RATE) -> torch.optim.AdamW:
    """AdamW whose embeddings learn at a fifth of the rate."""
    apart = [{"params": [p], "lr": rate / 5 if n == "embeddings" else rate} for n, p in parameters.items()]
    return torch.optim.AdamW(apart, weight_decay=0.0, betas=(0.9, 0.95), fused=True)


def fisher_of(parameters: dict[str, torch.nn.Parameter]) -> dict[str, torch.Tensor]:
    """Random numbers above 0, of mean 1."""
    generator = torch.Generator().manual_seed(1)
    drawn = {name: torch.rand(p.shape, generator=generator) ** 2 + 1e-3 for name, p in parameters.items()}
    mean = torch.cat([each.flatten() for each in drawn.values()]).mean()
    return {name: each / mean for name, each in drawn.items()}


def disturb(parameters: dict[str, torch.nn.Parameter], seed: int = 2) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters.values():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


def copies(parameters: dict[str, torch.nn.Parameter]) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in parameters.items()}


def bits(tensors: dict[str, Any]) -> dict[str, bytes]:
    return {name: tensor.detach().numpy().tobytes() for name, tensor in tensors.items()}


@pytest.mark.parametrize(("l2_sp", "ewc"), [(0.7, None), (None, 2.0), (0.7, 2.0)], ids=["l2-sp", "ewc", "both"])
def test_a_small_pull_is_a_step_along_the_penaltys_gradient(l2_sp: float | None, ewc: float | None) -> None:
    parameters = parameters_of()
    base, fisher = copies(parameters), fisher_of(parameters)
    rms = torch.cat([each.flatten() for each in base.values()]).double().square().mean().sqrt()
    optimizer = optimizer_of(parameters, rate=1e-4)
    anchor = Anchor(optimizer, parameters, ALONE, l2_sp=l2_sp, ewc=ewc, fisher=fisher)
    assert anchor.rms == pytest.approx(float(rms), rel=1e-6)
    disturb(parameters)
    moved = {name: each.double().requires_grad_() for name, each in copies(parameters).items()}
    penalty = sum(
        (((l2_sp or 0) / rms + (ewc or 0) / rms * fisher[name]) / 2 * (each - base[name]) ** 2).sum()
        for name, each in moved.items()
    )
    gradients = torch.autograd.grad(penalty, list(moved.values()))
    anchor.pull(UPDATED)
    for (name, before), gradient in zip(moved.items(), gradients, strict=True):
        step = (1e-4 / 5 if name == "embeddings" else 1e-4) * gradient
        pulled = before - parameters[name].detach()
        # To fp32's rounding of the weights themselves.
        torch.testing.assert_close(pulled, step, rtol=1e-4, atol=6e-8, msg=name)
        assert step.abs().max() > 1e-5


@pytest.mark.parametrize("strengths", [{}, {"l2_sp": 0.0}, {"ewc": 0.0}, {"l2_sp": 0.0, "ewc": 0.0}], ids=str)
def test_a_strength_of_0_is_none_to_the_bit(strengths: dict[str, float]) -> None:
    parameters = parameters_of()
    anchor = Anchor(optimizer_of(parameters), parameters, ALONE, **strengths)
    disturb(parameters)
    parameters["norm"].data.fill_(-0.0)
    before = bits(parameters)
    anchor.pull(UPDATED)
    assert bits(parameters) == before
    assert anchor.distance() > 0.1


def pushed(optimizer: torch.optim.AdamW, parameters: dict[str, torch.nn.Parameter], left_out: bool = False) -> None:
    """A step of AdamW with a gradient of 1 everywhere."""
    for parameter in parameters.values():
        parameter.grad = torch.ones_like(parameter)
    optimizer.grad_scale, optimizer.found_inf = None, torch.tensor(float(left_out))  # type: ignore[attr-defined]
    optimizer.step()


@pytest.mark.parametrize("strengths", [{"l2_sp": 1e30}, {"ewc": 1e30}, {"l2_sp": 1e300, "ewc": 1e300}], ids=str)
def test_an_endless_strength_keeps_the_base_to_the_bit(strengths: dict[str, float]) -> None:
    parameters = parameters_of()
    optimizer, fisher = optimizer_of(parameters), fisher_of(parameters)
    anchor = Anchor(optimizer, parameters, ALONE, fisher=fisher, **strengths)
    base = bits(parameters)
    for _ in range(3):
        pushed(optimizer, parameters)
        assert bits(parameters) != base
        anchor.pull(UPDATED)
        assert bits(parameters) == base
    assert anchor.distance() == 0


@pytest.mark.parametrize("strengths", [{"l2_sp": math.inf}, {"ewc": math.inf}], ids=str)
def test_an_infinite_strength_is_a_number_where_the_rate_has_come_down_to_0(strengths: dict[str, float]) -> None:
    parameters = parameters_of()
    optimizer, fisher = optimizer_of(parameters), fisher_of(parameters)
    anchor = Anchor(optimizer, parameters, ALONE, fisher=fisher, **strengths)
    base = bits(parameters)
    for rate in (1e-3, 0.0):
        for group in optimizer.param_groups:
            group["lr"] = rate
        pushed(optimizer, parameters)
        anchor.pull(UPDATED)
        assert bits(parameters) == base


def test_what_does_not_matter_for_the_text_goes_free() -> None:
    parameters = parameters_of()
    fisher = fisher_of(parameters)
    fisher["embeddings"][3] = 0
    anchor = Anchor(optimizer_of(parameters), parameters, ALONE, ewc=1e300, fisher=fisher)
    disturb(parameters)
    moved, others = parameters["embeddings"][3].clone(), torch.arange(7) != 3
    anchor.pull(UPDATED)
    assert torch.equal(parameters["embeddings"][3], moved)
    assert anchor.distance() > 0
    with torch.no_grad():
        parameters["embeddings"][others] += 1
    anchor.pull(UPDATED)
    assert torch.equal(parameters["embeddings"][3], moved)


@pytest.mark.parametrize("strengths", [{"l2_sp": 1.0}, {"ewc": 1.0}, {"l2_sp": 1e30, "ewc": 1.0}], ids=str)
def test_an_update_that_is_left_out_is_not_followed_by_a_pull(strengths: dict[str, float]) -> None:
    parameters = parameters_of()
    optimizer = optimizer_of(parameters)
    anchor = Anchor(optimizer, parameters, ALONE, fisher=fisher_of(parameters), **strengths)
    pushed(optimizer, parameters)
    before = bits(parameters)
    pushed(optimizer, parameters, left_out=True)
    anchor.pull(LEFT_OUT)
    assert bits(parameters) == before
    pushed(optimizer, parameters)
    anchor.pull(UPDATED)
    assert bits(parameters) != before


@pytest.mark.parametrize("width", [4, 64])
@pytest.mark.parametrize("strength", [4.0, 16.0])
def test_a_weight_that_is_pushed_all_the_time_stops_at_one_rms_over_the_strength(width: int, strength: float) -> None:
    parameters = parameters_of(width, scale=width**-0.5)
    base = copies(parameters)
    rate = 4e-3 * width**-0.5
    optimizer = optimizer_of(parameters, rate)
    fisher = {name: torch.ones_like(each) for name, each in base.items()}
    fisher["norm"][0] = 4.0
    anchor = Anchor(optimizer, parameters, ALONE, ewc=strength, fisher=fisher)
    for _ in range(1500):
        pushed(optimizer, parameters)
        anchor.pull(UPDATED)
    away = {name: base[name] - parameter.detach() for name, parameter in parameters.items()}
    # It swings between that place and the one a step behind it, to which it is pulled.
    stops = anchor.rms / strength
    torch.testing.assert_close(away["matrix"], torch.full((width, width), stops - rate), rtol=0.01, atol=0)
    torch.testing.assert_close(away["embeddings"], torch.full((7, width), stops - rate / 5), rtol=0.02, atol=0)
    assert float(away["norm"][0]) == pytest.approx(stops / 4 - rate, rel=0.01)


def test_the_rate_of_the_moment_is_used() -> None:
    parameters = parameters_of()
    optimizer = optimizer_of(parameters)
    anchor = Anchor(optimizer, parameters, ALONE, l2_sp=1.0)
    disturb(parameters)
    before = bits(parameters)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    anchor.pull(UPDATED)
    assert bits(parameters) == before
    for group in optimizer.param_groups:
        group["lr"] = 0.25 * anchor.rms  # a quarter of the way
    distance = anchor.distance()
    anchor.pull(UPDATED)
    assert float(anchor.distance() / distance) == pytest.approx(0.75, rel=1e-5)


@pytest.mark.parametrize("at_once", [1, 5, 50])
def test_it_does_not_matter_in_which_pieces_it_is_pulled(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for limit in (1 << 17, at_once):
        monkeypatch.setitem(module._AT_ONCE, "cpu", limit)
        parameters = parameters_of()
        both = {"l2_sp": 0.5, "ewc": 1.0, "fisher": fisher_of(parameters)}
        optimizer = torch.optim.AdamW(list(parameters.values()), lr=RATE)
        anchor = Anchor(optimizer, parameters, ALONE, **both)  # type: ignore[arg-type]
        disturb(parameters)
        anchor.pull(UPDATED)
        found.append((bits(parameters), anchor.memory_bytes))
    assert found[0] == found[1]


def test_distance_and_memory() -> None:
    parameters = parameters_of()
    base = torch.cat([each.flatten() for each in copies(parameters).values()])
    plain = Anchor(optimizer_of(parameters), parameters, ALONE, l2_sp=1.0)
    weighed = Anchor(optimizer_of(parameters), parameters, ALONE, ewc=1.0, fisher=fisher_of(parameters))
    assert plain.distance() == 0
    disturb(parameters)
    now = torch.cat([each.flatten() for each in copies(parameters).values()])
    assert float(plain.distance()) == pytest.approx(float((now - base).norm() / base.norm()), rel=1e-5)
    assert plain.memory_bytes == 4 * len(base)
    assert weighed.memory_bytes == 8 * len(base)


def test_only_what_is_trained_is_kept() -> None:
    parameters = parameters_of()
    optimizer = torch.optim.AdamW([parameters["norm"]], lr=RATE)
    anchor = Anchor(optimizer, parameters, ALONE, ewc=1e30, fisher=fisher_of(parameters))
    assert anchor.memory_bytes == 8 * 12
    assert anchor.rms == pytest.approx(float(parameters["norm"].detach().square().mean().sqrt()), rel=1e-6)
    base = parameters["norm"].detach().clone()
    disturb(parameters)
    matrix = parameters["matrix"].detach().clone()
    anchor.pull(UPDATED)
    assert torch.equal(parameters["norm"], base)
    assert torch.equal(parameters["matrix"], matrix)


@pytest.mark.parametrize(
    "change", [lambda f: f.pop("norm"), lambda f: f.update(norm=torch.ones(3))], ids=["lacks", "shape"]
)
def test_the_fisher_information_must_be_of_this_model(change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    parameters = parameters_of()
    fisher = fisher_of(parameters)
    change(fisher)
    with pytest.raises((KeyError, AssertionError)):
        Anchor(optimizer_of(parameters), parameters, ALONE, ewc=1.0, fisher=fisher)
