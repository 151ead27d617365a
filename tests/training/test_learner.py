"""A step of the learner: what it changes, and what it leaves untouched to the bit."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from onward.batches import NO_TARGET, Batch
from onward.model.load import load_model
from onward.model.source import describe
from onward.recipe import Optimizer
from onward.training.attention import ATTENTION
from onward.training.launch import Place
from onward.training.learner import Learner, Measured, is_out_of_memory
from onward.training.network import Network, Rows
from onward.training.ranks import Ranks
from onward.training.strategy import Strategy
from synthetic import llama_config, write_model

ROWS, LENGTH = 4, 24
RATE = 1e-2
SETTINGS: dict[str, Any] = {"learning_rate": RATE, "embedding_learning_rate": 2e-3, "clip_norm": 0.5}
PRECISIONS = pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "model", llama_config(tie_word_embeddings=request.param))


def learner_of(folder: Path, precision: torch.dtype = torch.float32, **changes: Any) -> Learner:
    """A learner whose embeddings learn at a fifth of the rate."""
    look = changes.pop("look_at_base", None)
    strategy = Strategy(loss_chunk=16, **changes)
    settings, ranks = Optimizer.model_validate(SETTINGS), Ranks(Place(), torch.device("cpu"))
    return Learner(describe(folder), settings, strategy, precision, ROWS * LENGTH, ranks, look)


def batch_of(step: int) -> Batch:
    """A row is one document and padding after it; few tokens, so that there is something to learn."""
    random = np.random.default_rng(step)
    ids = random.integers(1, 9, (ROWS, LENGTH))
    documents, positions = np.zeros_like(ids), np.tile(np.arange(LENGTH), (ROWS, 1))
    labels = np.roll(ids, -1, axis=1)
    for row, end in enumerate(random.integers(5, LENGTH, ROWS)):
        documents[row, end:], labels[row, end - 1 :], positions[row, end:] = -1, NO_TARGET, 0
    return Batch(ids, labels, documents, positions, np.zeros(ROWS, dtype=bool))


def made(learner: Learner, step: int, micro: int = 2, **changes: Any) -> Measured | None:
    """Make a step in micro-batches of `micro` rows."""
    batch = batch_of(step)
    rows = [Rows.of(batch.rows(start, start + micro)) for start in range(0, ROWS, micro)]
    return learner.update(rows, batch.labelled_tokens, RATE, **changes)


def bits(learner: Learner) -> dict[str, bytes]:
    """Weights, moments and step counters."""
    found = {name: tensor.numpy().tobytes() for name, tensor in learner.tensors().items()}
    for name, parameter in learner.model.named_parameters():
        found[f"step.{name}"] = learner.optimizer.state[parameter]["step"].numpy().tobytes()
    return found


def has_gradients(learner: Learner) -> bool:
    return any(p.grad is not None for group in learner.optimizer.param_groups for p in group["params"])


def assert_masters_in_place(learner: Learner) -> None:
    inside = {id(p) for group in learner.optimizer.param_groups for p in group["params"]}
    assert {id(p) for p in learner.model.parameters()} == inside
    assert all(p.dtype == torch.float32 for p in learner.model.parameters())


def test_three_steps_are_those_of_plain_adamw_on_the_mean_over_labelled_tokens(folder: Path) -> None:
    learner, plain = learner_of(folder), load_model(folder)
    embeddings = {id(plain.get_input_embeddings().weight), id(plain.get_output_embeddings().weight)}
    optimizer = torch.optim.AdamW(
        [
            {"params": [p], "lr": 2e-3 if id(p) in embeddings else RATE, "weight_decay": 0.1 if p.ndim > 1 else 0.0}
            for p in plain.parameters()
        ],
        betas=(0.9, 0.95),
    )
    for step in range(3):
        batch = batch_of(step)
        ids, labels = torch.from_numpy(batch.ids_BT), torch.from_numpy(batch.labels_BT)
        # A row holds one document at its start, so causality alone keeps padding away from it.
        loss = torch.nn.functional.cross_entropy(plain(input_ids=ids).logits.flatten(0, 1), labels.flatten())
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
        found = made(learner, step)
        assert found is not None
        assert found.loss_nats.item() == pytest.approx(loss.item(), rel=1e-5)
        assert found.gradient_norm.item() == pytest.approx(norm.item(), rel=1e-4)
        assert norm > 0.5, "nothing was clipped"
        assert found.left_out == 0
    for (name, a), (_, b) in zip(learner.model.named_parameters(), plain.named_parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")
    assert not has_gradients(learner)


@PRECISIONS
def test_a_step_learns_the_same_in_any_micro_batches(folder: Path, precision: torch.dtype) -> None:
    measured, weights = [], []
    for micro in (4, 1):
        learner = learner_of(folder, precision)
        found = made(learner, 0, micro)
        assert found is not None
        measured.append((found.loss_nats.item(), found.gradient_norm.item()))
        weights.append(learner.whole_weights(torch.float32))
    close = 1e-5 if precision == torch.float32 else 1e-2
    assert measured[0] == pytest.approx(measured[1], rel=close)
    if precision == torch.float32:
        for name in weights[0]:
            torch.testing.assert_close(weights[0][name], weights[1][name], rtol=1e-3, atol=1e-5)


@PRECISIONS
def test_the_loss_falls(folder: Path, precision: torch.dtype) -> None:
    learner = learner_of(folder, precision)
    losses = []
    for step in range(20):
        found = made(learner, step)
        assert found is not None
        losses.append(found.loss_nats.item())
    assert losses[-1] < losses[0] - 0.5
    assert_masters_in_place(learner)


def poisoned(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda gradient: torch.full_like(gradient, value)


@PRECISIONS
@pytest.mark.parametrize("bad", ["nan-gradient", "infinite-gradient", "nan-loss", "high-loss"])
def test_a_step_that_is_left_out_leaves_no_trace(folder: Path, bad: str, precision: torch.dtype) -> None:
    learner, undisturbed = learner_of(folder, precision), learner_of(folder, precision)
    for each in (learner, undisturbed):
        assert made(each, 0) is not None
    before = bits(learner)
    norm = learner.model.model.norm
    limit = {"limit_nats": 1.0} if bad == "high-loss" else {}
    if bad == "nan-loss":
        hook = learner.network.register_forward_hook(lambda *args: args[-1] + torch.nan)  # gradients stay finite
    elif bad == "high-loss":
        hook = norm.register_forward_hook(lambda *_: None)
    else:
        hook = norm.weight.register_hook(poisoned(float("nan") if bad == "nan-gradient" else float("inf")))
    found = made(learner, 1, **limit)
    hook.remove()
    assert found is not None
    assert found.left_out == 1
    assert np.isfinite(found.loss_nats.item()) == (bad != "nan-loss")
    assert np.isfinite(found.gradient_norm.item()) == bad.endswith("loss")
    assert bits(learner) == before
    assert not has_gradients(learner)
    for each in (learner, undisturbed):
        assert made(each, 2) is not None
    assert bits(learner) == bits(undisturbed)


def test_a_loss_at_the_limit_is_learned_from(folder: Path) -> None:
    learner = learner_of(folder)
    batch = batch_of(0)
    loss = float(learner.evaluate(Rows.of(batch))) / batch.labelled_tokens
    before = bits(learner)
    found = made(learner, 0, limit_nats=loss * 1.0001)
    assert found is not None
    assert found.left_out == 0
    assert bits(learner) != before
    assert {state["step"].item() for state in learner.optimizer.state.values()} == {1.0}


@PRECISIONS
def test_a_step_that_is_cancelled_in_its_middle_changes_nothing(folder: Path, precision: torch.dtype) -> None:
    learner = learner_of(folder, precision)
    assert made(learner, 0) is not None
    before = bits(learner)
    answers: Iterator[bool] = iter([False, False, True])
    assert made(learner, 1, micro=1, is_cancelled=lambda: next(answers)) is None
    assert next(answers, None) is None, "it was not asked between all micro-batches"
    assert bits(learner) == before
    assert not has_gradients(learner)
    assert_masters_in_place(learner)


def test_a_step_that_has_only_just_begun_is_made(folder: Path) -> None:
    learner = learner_of(folder)
    assert made(learner, 0, micro=ROWS, is_cancelled=lambda: True) is not None


@PRECISIONS
def test_an_exception_inside_a_step_leaves_nothing_behind(
    folder: Path, precision: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner, undisturbed = learner_of(folder, precision), learner_of(folder, precision)
    before = bits(learner)
    forward = Network.forward
    calls = []

    def failing(self: Network, rows: Rows, hidden_only: bool = False) -> torch.Tensor:
        calls.append(has_gradients(learner))
        if len(calls) == 2:
            raise torch.OutOfMemoryError("the allocator says no")
        return forward(self, rows, hidden_only)

    with monkeypatch.context() as patch:
        patch.setattr(Network, "forward", failing)
        with pytest.raises(torch.OutOfMemoryError):
            made(learner, 1)
    assert calls == [False, True], "the first micro-batch has left no gradients to be dropped"
    assert not has_gradients(learner)
    assert_masters_in_place(learner)
    assert bits(learner) == before
    for each in (learner, undisturbed):
        assert made(each, 1) is not None
    assert bits(learner) == bits(undisturbed)


def test_a_learner_goes_on_to_the_bit_from_anothers_tensors(folder: Path) -> None:
    learner = learner_of(folder)
    for step in range(2):
        assert made(learner, step) is not None
    kept = {name: tensor.clone() for name, tensor in learner.tensors().items()}
    other = learner_of(folder, checkpoint_every=1)
    other.take(kept, 2)
    assert other.updates == 2
    assert bits(other) == bits(learner)
    for each in (learner, other):
        assert made(each, 2) is not None
    assert bits(other) == bits(learner)


def test_tensors_are_the_weights_and_moments_themselves_with_tied_ones_once(folder: Path) -> None:
    learner = learner_of(folder)
    tensors = learner.tensors()
    names = [name for name, _ in learner.model.named_parameters()]
    tied = learner.model.config.tie_word_embeddings
    assert ("lm_head.weight" in names) != tied
    assert set(tensors) == {f"{part}.{name}" for part in ("weights", "exp_avg", "exp_avg_sq") for name in names}
    assert made(learner, 0) is not None
    for name, parameter in learner.model.named_parameters():
        assert tensors[f"weights.{name}"].data_ptr() == parameter.data_ptr()
        assert tensors[f"exp_avg.{name}"].any()


@PRECISIONS
def test_evaluating_learns_nothing_and_gives_the_loss_of_a_step(folder: Path, precision: torch.dtype) -> None:
    learner = learner_of(folder, precision)
    before = bits(learner)
    rows = Rows.of(batch_of(0))
    loss = learner.evaluate(rows)
    hidden = learner.evaluate(rows, hidden_only=True)
    assert not loss.requires_grad
    assert not hidden.requires_grad
    assert hidden.shape == (ROWS * LENGTH, 32)
    assert hidden.dtype == precision
    assert bits(learner) == before
    assert_masters_in_place(learner)
    found = made(learner, 0, micro=ROWS)
    assert found is not None
    assert loss.item() / batch_of(0).labelled_tokens == pytest.approx(found.loss_nats.item(), rel=1e-6)


def test_smaller_pieces_are_used_from_the_next_step(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from onward.training import network

    learner, chunks = learner_of(folder), []
    summed_loss = network.summed_loss

    def watched(*arguments: Any) -> torch.Tensor:
        chunks.append(arguments[3])
        return summed_loss(*arguments)

    monkeypatch.setattr(network, "summed_loss", watched)
    assert made(learner, 0, micro=ROWS) is not None
    learner.use(Strategy(loss_chunk=5))
    assert learner.strategy == Strategy(loss_chunk=5)
    assert made(learner, 1, micro=ROWS) is not None
    assert chunks == [16, 5]


def test_whole_weights_are_copies_in_the_type_asked_for(folder: Path) -> None:
    learner = learner_of(folder)
    same, half = learner.whole_weights(torch.float32), learner.whole_weights(torch.float16)
    expected = {name: parameter.detach().clone() for name, parameter in learner.model.named_parameters()}
    assert made(learner, 0) is not None
    assert same.keys() == half.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(same[name], tensor)
        assert torch.equal(half[name], tensor.half())
        assert not torch.equal(dict(learner.model.named_parameters())[name], tensor)


def test_the_base_is_looked_at_before_it_is_prepared(folder: Path) -> None:
    seen = []
    learner = learner_of(folder, look_at_base=lambda model: seen.append(model.config._attn_implementation))
    assert len(seen) == 1
    assert ATTENTION not in seen
    assert learner.model.config._attn_implementation == ATTENTION


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("not enough memory"), False),
    ],
    ids=["cuda", "python", "cpu", "windows", "cublas", "another", "another-kind"],
)
def test_running_out_of_memory_is_told_from_other_errors(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected
