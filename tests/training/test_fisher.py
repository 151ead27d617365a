"""The Fisher information is the mean of squared gradients, one summand at a time, however it is computed."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ranks_fisher import fisher

from onward.artifact import MANIFEST, Folders
from onward.batches import NO_TARGET, Batches, BatchPlan
from onward.corpus.store import open_corpus
from onward.errors import UserError
from onward.model.load import load_model
from onward.model.source import describe
from onward.recipe import Ewc
from onward.training import fisher as module
from onward.training.fisher import FACTS, WEIGHTS, SignedNetwork, estimate_fisher, find_fisher, read_fisher
from onward.training.fisher_facts import share_of_largest
from onward.training.launch import Place
from onward.training.ranks import Ranks
from onward.training.strategy import Strategy
from synthetic import llama_config, write_corpus, write_model

LENGTHS = [17, 5, 61, 9, 1, 30, 12, 2]
"""Tokens of the documents: one is cut by the ends of rows, one has nothing to learn from."""
LENGTH = 24
SMALL = {"hidden_size": 16, "intermediate_size": 24}
ALONE = Ranks(Place(), torch.device("cpu"))
PER = pytest.mark.parametrize("per", ["token", "sequence"])


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = llama_config(tie_word_embeddings=request.param, **SMALL)
    return write_model(tmp_path_factory.mktemp("fisher") / "model", config)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "corpus", LENGTHS, LENGTH)


def summands(model: Path, corpus: Path, per: str) -> dict[str, torch.Tensor]:
    """Every token's or document's own gradient, by plain PyTorch on documents by themselves: [summands, *shape]."""
    plain, opened = load_model(model), open_corpus(corpus)
    names, parameters = zip(*plain.named_parameters(), strict=True)
    found: list[tuple[torch.Tensor, ...]] = []
    for number in range(opened.num_sequences):
        for offset, length, ends in zip(*opened.sequence(number), strict=True):
            tokens = torch.from_numpy(opened.read(int(offset), int(length) + (not ends)).astype(np.int64))
            if len(tokens) < 2:
                continue
            logits = plain(input_ids=tokens[None, :-1]).logits[0]
            likelihoods = logits.log_softmax(-1).gather(1, tokens[1:, None])[:, 0]
            those = likelihoods if per == "token" else [likelihoods.sum()]
            found += [torch.autograd.grad(summand, parameters, retain_graph=True) for summand in those]
    return {name: torch.stack(each).double() for name, *each in zip(names, *found, strict=True)}


def normalised(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    mean = sum(tensor.sum() for tensor in tensors.values()) / sum(tensor.numel() for tensor in tensors.values())
    return {name: tensor / mean for name, tensor in tensors.items()}


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], limit: float = 1e-5) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found[name].double() - tensor).norm() <= limit * tensor.norm(), name


def estimated(model: Path, corpus: Path, seed: int = 7, **settings: Any) -> module.Estimate:
    network = SignedNetwork(load_model(model), torch.float32, Strategy(loss_chunk=50))
    return estimate_fisher(network, open_corpus(corpus), Ewc.model_validate(settings), seed, ALONE)


@PER
@pytest.mark.parametrize("micro", [1, 3])
def test_exact_is_the_mean_of_squares_one_summand_at_a_time(
    model: Path, corpus: Path, tmp_path: Path, per: str, micro: int
) -> None:
    brute = summands(model, corpus, per)
    means = {name: each.square().mean(0) for name, each in brute.items()}
    found = estimated(model, corpus, per=per, estimator="exact")
    assert_close(found.information, means)
    count = len(next(iter(brute.values())))
    assert (found.tokens if per == "token" else found.sequences) == count
    strategy = Strategy(micro_batch=micro, loss_chunk=50, checkpoint_every=1)
    artifact = fisher(model, corpus, tmp_path, (per, "exact"), strategy, ALONE)
    assert_close(read_fisher(artifact), normalised(means))


@PER
def test_it_is_not_the_square_of_a_mean(model: Path, corpus: Path, per: str) -> None:
    brute = summands(model, corpus, per)
    found = estimated(model, corpus, per=per, estimator="exact").information
    total = sum(float(tensor.sum()) for tensor in found.values())
    squared_mean = sum(float(each.mean(0).square().sum()) for each in brute.values())
    assert total > 2 * squared_mean


@PER
def test_signs_are_right_in_the_mean(tmp_path: Path, per: str) -> None:
    model = write_model(tmp_path / "model", llama_config(**SMALL, num_hidden_layers=1))
    corpus = open_corpus(write_corpus(tmp_path / "corpus", [9, 8, 7, 6], 15))
    network = SignedNetwork(load_model(model), torch.float32, Strategy())

    def flat(seed: int, **settings: str) -> torch.Tensor:
        found = estimate_fisher(network, corpus, Ewc.model_validate(settings), seed, ALONE)
        return torch.cat([each.flatten() for each in found.information.values()])

    exact = flat(0, per=per, estimator="exact")
    other = flat(0, per="sequence" if per == "token" else "token", estimator="exact")
    drawn = torch.stack([flat(seed, per=per) for seed in range(200)])
    error = drawn.std(0) / len(drawn) ** 0.5
    seen = error > 1e-3 * exact
    deviations = ((drawn.mean(0) - exact) / error)[seen]
    assert deviations.abs().max() < 6
    assert 0.5 < deviations.square().mean() < 2
    total, deviation = drawn.sum(1).mean(), drawn.sum(1).std() / len(drawn) ** 0.5
    assert abs(total - exact.sum()) < 3 * deviation
    assert abs(other.sum() - exact.sum()) > 10 * deviation, "the test could not tell one kind from the other"


def test_signs_are_of_seed_and_row(model: Path, corpus: Path, tmp_path: Path) -> None:
    artifacts = [
        fisher(
            model, corpus, tmp_path / str(micro), ("token", "signs"), Strategy(micro_batch=micro, loss_chunk=50), ALONE
        )
        for micro in (1, 3)
    ]
    one, other = map(read_fisher, artifacts)
    assert all(torch.equal(one[name], other[name]) for name in one)
    again = estimated(model, corpus, seed=8).information
    assert not torch.allclose(again["model.norm.weight"], estimated(model, corpus).information["model.norm.weight"])


@PER
def test_each_labelled_token_or_document_has_one_sign(corpus: Path, per: str) -> None:
    batch = Batches(BatchPlan(LENGTH, 1, (), 7, (3,)), [open_corpus(corpus)], padding_id=0)[2]
    drawn = {key: module._signed(batch, per, key, ALONE.device) for key in [(7, 2), (7, 3), (8, 2)]}
    for plus, minus in drawn.values():
        chosen = torch.cat([plus, minus]).sort().values.numpy()
        assert np.array_equal(chosen, np.flatnonzero(batch.labels_BT[0] != NO_TARGET))
        shared = set(batch.documents_BT[0][plus.numpy()]) & set(batch.documents_BT[0][minus.numpy()])
        assert not shared or per == "token"
    again = module._signed(batch, "token", (7, 2), ALONE.device)[0]
    others = [module._signed(batch, "token", key, ALONE.device)[0] for key in [(7, 3), (8, 2)]]
    assert torch.equal(module._signed(batch, "token", (7, 2), ALONE.device)[0], again)
    assert not any(torch.equal(other, again) for other in others)


def test_an_artifact_is_normalised_and_tells_what_it_is_of(model: Path, corpus: Path, tmp_path: Path) -> None:
    artifact = fisher(model, corpus, tmp_path, ("token", "exact"), Strategy(loss_chunk=50), ALONE)
    tensors, plain = read_fisher(artifact), load_model(model)
    assert {name: each.shape for name, each in tensors.items()} == {n: p.shape for n, p in plain.named_parameters()}
    assert ("lm_head.weight" in tensors) != plain.config.tie_word_embeddings
    everything = torch.cat([each.flatten() for each in tensors.values()]).double()
    assert {each.dtype for each in tensors.values()} == {torch.float32}
    assert float(everything.mean()) == pytest.approx(1, rel=1e-6)
    facts = json.loads((artifact / FACTS).read_text())
    expected = estimated(model, corpus, estimator="exact")
    mean = sum(float(each.sum()) for each in expected.information.values()) / len(everything)
    assert (facts["tokens"], facts["sequences"]) == (expected.tokens, expected.sequences)
    assert (facts["per"], facts["estimator"], facts["mean"]) == ("token", "exact", pytest.approx(mean))
    largest = everything.sort(descending=True).values[: round(len(everything) * 0.01)].sum() / everything.sum()
    assert facts["all"]["share_of_largest"] == pytest.approx(float(largest), rel=0.01)
    weights = {kind: held["weights"] for kind, held in facts["kinds"].items()}
    head = 257 * 16
    assert weights == {
        "embeddings": head if plain.config.tie_word_embeddings else 2 * head,
        "attention": 2 * (2 * 16 * 16 + 2 * 16 * 8),
        "mlp": 2 * 3 * 16 * 24,
        "norms": 5 * 16,
    }
    assert sum(held["share"] for held in facts["kinds"].values()) == pytest.approx(1)
    norms = torch.cat([each for name, each in tensors.items() if "norm" in name])
    assert facts["kinds"]["norms"]["mean"] == pytest.approx(float(norms.mean()), rel=1e-5)


def test_it_is_estimated_once(model: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place: dict[str, Any] = {"seed": 7, "strategy": Strategy(), "ranks": ALONE}
    first = find_fisher(describe(model), corpus, tmp_path, Ewc(), **place)
    assert first.parent == tmp_path / "fisher"
    with monkeypatch.context() as patch:
        patch.setattr(module, "_estimated", lambda *_: pytest.fail("it is there already"))
        # The strength is how much is made of it, and a strategy how the model fits.
        weaker = Ewc(strength=0.1, text="self")
        assert find_fisher(describe(model), corpus, tmp_path, weaker, 7, Strategy(micro_batch=3), ALONE) == first
    others = [Ewc(per="sequence"), Ewc(estimator="exact"), Ewc(tokens=48)]
    made = {find_fisher(describe(model), corpus, tmp_path, ewc, **place) for ewc in others}
    made.add(find_fisher(describe(model), corpus, tmp_path, Ewc(), **(place | {"seed": 8})))
    assert len(made - {first}) == 4


def test_processes_that_want_the_same_wait_for_the_one_that_estimates(
    model: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two opened files lock each other out, in one process as in two.
    estimating, noted = Event(), Event()
    as_ever, estimates, second = module._estimated, [], Told(on_note=noted.set)

    def slowly(*settings: Any) -> Any:
        estimates.append(1)
        estimating.set()
        assert noted.wait(60), "the other did not wait"
        return as_ever(*settings)

    def want(progress: Any) -> Path:
        return find_fisher(describe(model), corpus, tmp_path, Ewc(), 7, Strategy(), ALONE, progress)

    monkeypatch.setattr(module, "_estimated", slowly)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(want, Told())
        assert estimating.wait(60)
        found = pool.submit(want, second).result()
    assert first.result() == found
    assert len(estimates) == 1
    assert second.notes == ["another process estimates the Fisher information: waiting for it"]
    assert [path.name for path in (tmp_path / "fisher").iterdir()] == [found.name], "no lock is left"


@pytest.mark.parametrize(
    ("settings", "strategy", "device", "ways"),
    [
        ({}, Strategy(), "cpu", ["gradient_checkpointing: all", "machine with more memory"]),
        ({"estimator": "exact"}, Strategy(), "cuda", ["offload: true", "estimator: signs", "machine with more"]),
        ({}, Strategy(offload=True, checkpoint_every=1), "cuda", ["machine with more memory"]),
    ],
    ids=["signs", "exact", "offloaded"],
)
def test_too_little_memory_says_how_much_is_needed_and_what_would_need_less(
    model: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any], strategy: Strategy, device: str, ways: list[str],
) -> None:  # fmt: skip
    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    ranks, ewc = Ranks(Place(), torch.device(device)), Ewc.model_validate(settings)
    with monkeypatch.context() as patch:
        patch.setattr(module, "estimate_fisher", full)
        patch.setattr(module, "load_model", lambda *_: load_model(model))
        patch.setattr(module, "share_out", lambda *_: None)
        with pytest.raises(UserError, match="the memory is full") as refused:
            find_fisher(describe(model), corpus, tmp_path, ewc, 7, strategy, ranks)
    needed = 16 * sum(p.numel() for p in load_model(model).parameters())
    assert f"about {needed / 1e3:.0f} kB" in str(refused.value.expected)
    assert "Tried to allocate" in str(refused.value.got)
    told = str(refused.value.todo).split("; or ")
    assert len(told) == len(ways)
    assert all(way in each for way, each in zip(ways, told, strict=True))
    assert find_fisher(describe(model), corpus, tmp_path, Ewc(), 7, Strategy(), ALONE).exists(), "no lock is left"


def test_a_disk_without_room_is_told_before_anything_is_estimated(
    model: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = sum(p.numel() for p in load_model(model).parameters())
    place: dict[str, Any] = {"seed": 7, "strategy": Strategy(), "ranks": ALONE}
    with monkeypatch.context() as patch:
        patch.setattr(module, "disk_usage", lambda _: SimpleNamespace(free=4 * weights - 1))
        patch.setattr(module, "_estimated", lambda *_: pytest.fail("it could not be written"))
        with pytest.raises(UserError, match="the disk is full") as refused:
            find_fisher(describe(model), corpus, tmp_path / "new", Ewc(), **place)
        assert str(tmp_path / "new") in str(refused.value.where)
    with monkeypatch.context() as patch:
        patch.setattr(module, "disk_usage", lambda _: SimpleNamespace(free=4 * weights))
        assert find_fisher(describe(model), corpus, tmp_path / "new", Ewc(), **place).exists()


def test_one_made_from_something_else_is_refused(model: Path, corpus: Path, tmp_path: Path) -> None:
    first = fisher(model, corpus, tmp_path, ("token", "signs"), Strategy(), ALONE)
    other = fisher(model, corpus, tmp_path, ("sequence", "signs"), Strategy(), ALONE)
    manifest = (other / MANIFEST).read_text()
    (first / MANIFEST).write_text(manifest)
    with pytest.raises(UserError, match="made from something else") as caught:
        fisher(model, corpus, tmp_path, ("token", "signs"), Strategy(), ALONE)
    assert "per: was 'sequence', is 'token'" in str(caught.value.got)


def test_a_damaged_one_is_made_anew(model: Path, corpus: Path, tmp_path: Path) -> None:
    artifact = fisher(model, corpus, tmp_path, ("token", "signs"), Strategy(), ALONE)
    before = read_fisher(artifact)["model.norm.weight"].clone()
    content = bytearray((artifact / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (artifact / WEIGHTS).write_bytes(content)
    assert fisher(model, corpus, tmp_path, ("token", "signs"), Strategy(), ALONE) == artifact
    assert torch.equal(read_fisher(artifact)["model.norm.weight"], before)


class Told:
    """A progress that keeps what it is told."""

    def __init__(self, on_note: Callable[[], None] = lambda: None) -> None:
        self.notes: list[str] = []
        self.on_note = on_note
        self.begun: list[tuple[str, int | None, str]] = []
        self.done: list[int] = []

    def begin(self, title: str, total: int | None, unit: str) -> None:
        self.begun.append((title, total, unit))

    def advance(self, done: int, facts: str = "") -> None:
        self.done.append(done)

    def note(self, text: str) -> None:
        self.notes.append(text)
        self.on_note()


def test_so_many_tokens_are_read_and_a_short_text_once(model: Path, corpus: Path) -> None:
    network, told = SignedNetwork(load_model(model), torch.float32, Strategy()), Told()
    part = estimate_fisher(network, open_corpus(corpus), Ewc(tokens=40), 7, ALONE, told)
    assert part.rows == 2
    assert told.begun == [("estimating the Fisher information", 48, "tokens")]
    assert told.done == [24, 48]
    everything = estimated(model, corpus)
    assert everything.rows == open_corpus(corpus).num_sequences
    assert part.tokens < everything.tokens == sum(LENGTHS) - len(LENGTHS)


def test_a_text_without_anything_to_learn_is_refused(model: Path, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", [1] * 30, LENGTH)
    with pytest.raises(UserError, match="no document of two tokens"):
        estimated(model, corpus)


@pytest.mark.parametrize("spread", [0.0, 1.0, 10.0], ids=["equal", "wide", "very-wide"])
def test_what_the_largest_hold_is_that_of_a_sorted_list(spread: float) -> None:
    values = torch.from_numpy(np.exp(spread * np.random.default_rng(0).standard_normal(30_000))).float()
    values[::3] = 0
    largest = values.sort(descending=True).values[:300].sum() / values.sum()
    assert share_of_largest([values[:70], values[70:]]) == pytest.approx(float(largest), rel=2e-3)


def test_folders_hold_it_in_the_cache(tmp_path: Path, model: Path, corpus: Path) -> None:
    folders = Folders(tmp_path / "cache", tmp_path / "runs")
    artifact = find_fisher(describe(model), corpus, folders.cache, Ewc(tokens=24), 0, Strategy(), ALONE)
    assert {path.name for path in artifact.iterdir()} == {MANIFEST, WEIGHTS, FACTS}
    assert json.loads((artifact / MANIFEST).read_text())["made_from"]["text"] == corpus.name
