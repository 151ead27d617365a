"""Two ranks that share a model find its Fisher information and pull it as one process does; over gloo."""

import json
from pathlib import Path

import pytest
import torch
from ranks_fisher import KINDS, STRATEGIES, fisher, pulled
from safetensors.torch import load_file
from test_parallel import torchrun

from onward.training.fisher import FACTS, read_fisher
from onward.training.launch import Place
from onward.training.ranks import Ranks
from synthetic import llama_config, write_corpus, write_model

ALONE = Ranks(Place(), torch.device("cpu"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and a corpus, and what two ranks made of them under every strategy."""
    place = tmp_path_factory.mktemp("fisher")
    write_model(place / "model", llama_config(hidden_size=16, intermediate_size=24, num_hidden_layers=1))
    write_corpus(place / "corpus", [17, 5, 20, 1, 9, 2], sequence_tokens=12)
    (place / "shared").mkdir()
    torchrun("ranks_fisher.py", place / "model", place / "corpus", place / "shared")
    return place


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
@pytest.mark.parametrize("name", STRATEGIES)
def test_two_ranks_find_what_one_process_finds(place: Path, tmp_path: Path, name: str, kind: tuple[str, str]) -> None:
    alone = fisher(place / "model", place / "corpus", tmp_path, kind, STRATEGIES["none"], ALONE)
    together = place / "shared" / name / "fisher" / alone.name
    expected, found = read_fisher(alone), read_fisher(together)
    assert found.keys() == expected.keys()
    for parameter, tensor in expected.items():
        assert (found[parameter] - tensor).norm() <= 5e-6 * tensor.norm(), parameter
    facts, other = (json.loads((folder / FACTS).read_text()) for folder in (together, alone))
    assert facts["mean"] == pytest.approx(other["mean"], rel=1e-6)
    for part in ("tokens", "sequences", "rows"):
        assert facts[part] == other[part]


@pytest.mark.parametrize("name", STRATEGIES)
def test_two_ranks_pull_as_one_process_does(place: Path, tmp_path: Path, name: str) -> None:
    information = fisher(place / "model", place / "corpus", tmp_path, KINDS[-1], STRATEGIES["none"], ALONE)
    expected = pulled(place / "model", information, STRATEGIES["none"], ALONE)
    free = pulled(place / "model", information, STRATEGIES["none"], ALONE, strength=0)
    found = load_file(place / "shared" / f"{name}.safetensors")
    assert found.keys() == expected.keys()
    for parameter, tensor in expected.items():
        torch.testing.assert_close(found[parameter], tensor, rtol=1e-4, atol=1e-6, msg=parameter, check_dtype=False)
    assert expected["distance"] < 0.9 * free["distance"], "there was hardly a pull"
