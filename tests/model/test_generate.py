import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy import stats
from test_tree_attention import OTHERS, PLAIN, VOCABULARY, model_of

from onward.errors import UserError
from onward.model.decode_batch import DecodeBatch
from onward.model.draw import draw, numbers_of
from onward.model.generate import sample_documents
from onward.model.load import load_model
from onward.model.sampled import Sampled
from onward.model.tokenizer import LoadedTokenizer, read_tokenizer
from onward.recipe import SelfReplay
from synthetic import llama_config, write_model

Loaded = tuple[Any, LoadedTokenizer]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    folder = write_model(tmp_path_factory.mktemp("model"))
    return load_model(folder), read_tokenizer(folder)


def settings_of(**changes: object) -> SelfReplay:
    return SelfReplay.model_validate({"tokens": 3000, "document_tokens": 40, **changes})


def texts_of(documents: list[Sampled]) -> list[str]:
    return [document.text for document in documents]


def test_sampling_is_fixed_by_its_seed_and_meets_its_budget(loaded: Loaded) -> None:
    settings = settings_of(top_p=0.9)
    first, again, other = (list(sample_documents(*loaded, settings, seed)) for seed in (1, 1, 2))
    assert first == again
    assert texts_of(first) != texts_of(other)
    assert sum(document.tokens + 1 for document in first[:-1]) < 3000 <= sum(document.tokens + 1 for document in first)


@pytest.mark.parametrize("rows", [1, 7, 300])
def test_a_document_does_not_depend_on_those_beside_it(loaded: Loaded, rows: int) -> None:
    settings = settings_of(tokens=600)
    expected = texts_of(list(sample_documents(*loaded, settings, 1)))
    assert texts_of(list(sample_documents(*loaded, settings, 1, rows=rows))) == expected


def test_going_on_after_a_document_gives_what_would_have_followed(loaded: Loaded) -> None:
    settings = settings_of(tokens=1500)
    whole = list(sample_documents(*loaded, settings, 1))
    made = sum(document.tokens for document in whole[:9]) + whole[8].number + 1
    rest = list(sample_documents(*loaded, settings, 1, first=whole[8].number + 1, made=made))
    assert texts_of(rest) == texts_of(whole[9:])


@pytest.mark.parametrize("name", [*PLAIN, *OTHERS])
def test_loss_and_entropy_are_those_of_a_forward_pass(name: str, loaded: Loaded) -> None:
    """Of every kind of model, through rows and through waves: documents in rows that others ended in, too."""
    model = model_of((PLAIN | OTHERS)[name]())
    attention = model.config._attn_implementation
    _, tokenizer = loaded
    batch = DecodeBatch(model, tokenizer, settings_of(document_tokens=30), 3, 30, rows=4)
    ended, begun = [], 0
    with torch.inference_mode():
        while len(ended) < 11:
            while batch.has_room and begun < 11:
                batch.begin(begun)
                begun += 1
            ended += batch.step()
        assert sorted(document.number for document in ended) == list(range(11))
        for document in ended:
            ids = torch.tensor([[tokenizer.prefix_id, *document.ids]])
            logprobs = model(input_ids=ids, use_cache=False).logits[0, :-1].double().log_softmax(-1)
            nats = -logprobs.gather(1, ids[0, 1:, None]).sum()
            assert document.nats == pytest.approx(float(nats), abs=2e-3)
            assert document.entropy == pytest.approx(float(-(logprobs.exp() * logprobs).sum()), abs=2e-3)
    assert model.config._attn_implementation == attention, "the model's own attention is put back"
    assert max(max(document.ids, default=0) for document in ended) < VOCABULARY


def test_sampling_follows_the_models_distribution(loaded: Loaded) -> None:
    """A tiny nucleus and a tiny temperature both leave the likeliest token only."""
    nucleus, cold = (settings_of(tokens=100, **change) for change in ({"top_p": 1e-6}, {"temperature": 1e-4}))
    first = texts_of(list(sample_documents(*loaded, nucleus, seed=0)))
    assert first == texts_of(list(sample_documents(*loaded, cold, seed=5)))
    assert len(set(first)) <= 1, "every document starts from the same prefix"


@pytest.mark.parametrize(("vocabulary", "temperature", "top_p"), [(200, 1.0, 1.0), (64, 0.7, 1.0), (200, 1.0, 0.8)])
def test_tokens_are_drawn_as_often_as_they_are_likely(vocabulary: int, temperature: float, top_p: float) -> None:
    chance = np.random.default_rng(0)
    logits = chance.normal(size=vocabulary) * 2
    logits[5] = -math.inf
    draws = 40_000
    uniform = torch.from_numpy(chance.random(draws))
    rows = torch.from_numpy(logits).float().expand(draws, -1).clone()
    drawn = draw(rows, uniform, temperature, top_p, never=7)
    expected = np.exp(logits / temperature)
    expected[7] = 0.0
    expected /= expected.sum()
    order = np.argsort(-expected)
    before = np.cumsum(expected[order]) - expected[order]
    expected[order[before >= top_p]] = 0.0
    expected /= expected.sum()
    counts = np.bincount(drawn.ids.numpy(), minlength=vocabulary)
    assert counts[expected == 0].sum() == 0
    often = expected * draws > 5
    assert stats.chisquare(counts[often], expected[often] / expected[often].sum() * counts[often].sum()).pvalue > 1e-3
    own = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(drawn.nats[0], -np.log(own[drawn.ids[0]]), rtol=1e-4)
    np.testing.assert_allclose(drawn.entropy[0], -np.sum(own[own > 0] * np.log(own[own > 0])), rtol=1e-4)


def test_the_ends_of_the_uniform_numbers_give_tokens_that_can_be() -> None:
    logits = torch.full((2, 130), -math.inf)
    logits[:, [3, 70]] = 0.0
    uniform = torch.tensor([0.0, np.nextafter(1.0, 0.0)], dtype=torch.float64)
    assert draw(logits, uniform).ids.tolist() == [3, 70]
    many = torch.randn(500, 64, generator=torch.Generator().manual_seed(0))
    many[:, 41:] = -math.inf  # what the fp32 sum of a piece has too much is not for them
    assert int(draw(many, uniform[1:].expand(500)).ids.max()) <= 40


def test_a_wanted_median_spreads_the_lengths(loaded: Loaded) -> None:
    settings = settings_of(tokens=8000, document_tokens=200, median_tokens=20, length_spread=1.5)
    lengths = np.array([d.tokens for d in sample_documents(*loaded, settings, 0)])
    assert 17 <= np.median(lengths) <= 23
    assert np.std(np.log(lengths)) == pytest.approx(math.log(1.5), rel=0.2)
    assert lengths.max() <= 200


def test_a_median_above_the_longest_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"median_tokens \(50\) is above document_tokens, the longest \(40\)"):
        settings_of(median_tokens=50)


def test_draws_are_a_documents_own() -> None:
    assert numbers_of(1, 2, 3)[1].tolist() == numbers_of(1, 2, 5)[1][:3].tolist()
    assert len({numbers_of(seed, number, 1)[1][0] for seed in range(3) for number in range(3)}) == 9


def changed(folder: Path, change: Callable[[Any], None]) -> Loaded:
    write_model(folder, llama_config(tie_word_embeddings=False))
    model = load_model(folder)
    with torch.no_grad():
        change(model)
    return model, read_tokenizer(folder)


def test_a_model_that_only_ends_documents_comes_to_an_end(tmp_path: Path) -> None:
    def change(model: Any) -> None:
        model.lm_head.weight.zero_()
        model.lm_head.weight[0] = 1.0
        model.model.norm.weight.fill_(100.0)
        model.lm_head.weight[0] *= torch.sign(model(input_ids=torch.zeros(1, 1, dtype=torch.long)).logits[0, 0, 0])

    assert list(sample_documents(*changed(tmp_path, change), settings_of(tokens=50), seed=0)) == []


def test_a_model_without_numbers_is_a_message(tmp_path: Path) -> None:
    loaded = changed(tmp_path, lambda model: model.lm_head.weight.fill_(math.nan))
    with pytest.raises(UserError, match="logits are not numbers"):
        list(sample_documents(*loaded, settings_of(tokens=50), seed=0))
