"""Blends of two models: their weights, their folders, and what cannot be blended."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from onward.errors import UserError
from onward.model.blend import blend_source, open_pair, write_blend
from onward.model.load import load_model
from onward.model.source import ModelSource, describe
from synthetic import llama_config, write_model


@pytest.fixture
def ends(tmp_path: Path) -> tuple[ModelSource, ModelSource]:
    """Two models of one network, stored in bfloat16."""
    for name, seed in (("base", 1), ("adapted", 2)):
        folder = write_model(tmp_path / name, seed=seed)
        weights = load_file(folder / "model.safetensors")
        halved = {key: tensor.to(torch.bfloat16) for key, tensor in weights.items()}
        save_file(halved, folder / "model.safetensors", metadata={"format": "pt"})
        change_config(folder, dtype="bfloat16")
    return describe(tmp_path / "base"), describe(tmp_path / "adapted")


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_the_ends_are_the_two_models_bit_for_bit(ends: tuple[ModelSource, ModelSource], tmp_path: Path) -> None:
    pair = open_pair(*ends)
    for share, model in zip((0.0, 1.0), ends, strict=True):
        write_blend(pair, share, tmp_path / "blend", {})
        written, given = weights_of(tmp_path / "blend"), weights_of(model.folder)
        assert written.keys() == given.keys()
        assert "lm_head.weight" not in written, "tied weights are written once"
        for name, tensor in written.items():
            assert tensor.dtype == given[name].dtype == torch.bfloat16
            assert torch.equal(tensor.view(torch.int16), given[name].view(torch.int16)), name
        assert blend_source(*ends, share) is model


def test_what_lies_between_is_the_mean_in_the_adapted_models_type(
    ends: tuple[ModelSource, ModelSource], tmp_path: Path
) -> None:
    write_blend(open_pair(*ends), 0.25, tmp_path / "blend", {"chosen_by": "hand"})
    first, second = (weights_of(model.folder) for model in ends)
    for name, tensor in weights_of(tmp_path / "blend").items():
        mean = (0.75 * first[name].double() + 0.25 * second[name].double()).float()
        assert torch.equal(tensor, mean.to(torch.bfloat16)), name
    facts = json.loads((tmp_path / "blend" / "blend.json").read_bytes())
    assert facts["share"] == 0.25
    assert facts["chosen_by"] == "hand"
    assert facts["base"] == {"name": ends[0].name, "fingerprint": ends[0].fingerprint}
    assert json.loads((tmp_path / "blend" / "config.json").read_bytes())["dtype"] == "bfloat16"


def test_a_blends_logits_are_those_of_weights_averaged_by_hand(tmp_path: Path) -> None:
    ends = tuple(describe(write_model(tmp_path / name, seed=seed)) for name, seed in (("base", 1), ("adapted", 2)))
    ids = torch.randint(1, 257, (2, 40), generator=torch.Generator().manual_seed(3))
    base, adapted = map(load_model, ends)
    with torch.no_grad():
        for mine, theirs in zip(base.parameters(), adapted.parameters(), strict=True):
            mine.copy_(0.7 * mine + 0.3 * theirs)
        expected = base(ids).logits
        in_memory = load_model(blend_source(ends[0], ends[1], 0.3))(ids).logits
        write_blend(open_pair(ends[0], ends[1]), 0.3, tmp_path / "blend", {})
        written = AutoModelForCausalLM.from_pretrained(tmp_path / "blend", dtype=torch.float32)(ids).logits
    assert torch.allclose(in_memory, expected, atol=1e-5)
    assert torch.equal(in_memory, written), "what is scored is what is written"


def test_a_blend_is_a_source_of_its_own(ends: tuple[ModelSource, ModelSource]) -> None:
    prints = {blend_source(*ends, share).fingerprint for share in (0.0, 0.1, 0.2, 1.0)}
    prints.add(blend_source(ends[1], ends[0], 0.1).fingerprint)
    assert len(prints) == 5


def test_a_base_with_other_names_is_read_by_transformers(ends: tuple[ModelSource, ModelSource], tmp_path: Path) -> None:
    """A published base may be pickled, or hold the tied output head too; a run's own folders never do."""
    base = tmp_path / "pickled"
    shutil.copytree(ends[0].folder, base)
    weights = weights_of(base)
    torch.save(weights, base / "pytorch_model.bin")
    (base / "model.safetensors").unlink()
    pair = open_pair(describe(base), ends[1])
    again = open_pair(*ends)
    assert all(torch.equal(pair.tensor(name, 0.5), again.tensor(name, 0.5)) for name in pair.names)
    save_file(weights | {"lm_head.weight": weights["model.embed_tokens.weight"].clone()}, base / "model.safetensors")
    assert open_pair(describe(base), ends[1]).names == pair.names


@pytest.mark.parametrize("form", ["alone", "sharded"])
def test_files_beside_the_weights_have_no_part_in_a_blend(
    ends: tuple[ModelSource, ModelSource], tmp_path: Path, form: str
) -> None:
    """An average of the same names, and another format's names, as folders of the Hub hold them."""
    folder = tmp_path / "beside"
    shutil.copytree(ends[1].folder, folder)
    weights = weights_of(ends[1].folder)
    if form == "sharded":
        load_model(ends[1], torch.bfloat16).save_pretrained(folder, max_shard_size="20KB")
        (folder / "model.safetensors").unlink(missing_ok=True)
        assert len(list(folder.glob("model-*.safetensors"))) > 1
    save_file(weights_of(ends[0].folder), folder / "model_ema.safetensors")
    save_file({"layers.0.attention.wq.weight": torch.zeros(2, 2)}, folder / "consolidated.safetensors")
    pair = open_pair(ends[0], describe(folder))
    assert all(torch.equal(pair.tensor(name, 1.0), weights[name]) for name in pair.names)
    if form == "sharded":
        next(folder.glob("model-*.safetensors")).unlink()
        with pytest.raises(UserError, match="a file of the model's weights is missing"):
            open_pair(ends[0], describe(folder))
        (folder / "model.safetensors.index.json").write_text("{}")
        with pytest.raises(UserError, match="the index of the model's weights is damaged"):
            open_pair(ends[0], describe(folder))


def test_models_that_do_not_fit_are_refused_with_what_differs(
    ends: tuple[ModelSource, ModelSource], tmp_path: Path
) -> None:
    def refused(change: Callable[[Path], None], *said: str) -> None:
        folder = tmp_path / "other"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(ends[0].folder, folder)
        change(folder)
        with pytest.raises(UserError) as error:
            open_pair(describe(folder), ends[1])
        assert all(part in str(error.value) for part in said), str(error.value)

    def rename(folder: Path) -> None:
        weights = weights_of(folder)
        weights["model.stranger.weight"] = torch.zeros(3)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    def reshape(folder: Path) -> None:
        weights = weights_of(folder)
        weights["model.norm.weight"] = torch.zeros(3)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    def another_word(folder: Path) -> None:
        path = folder / "tokenizer.json"
        content = json.loads(path.read_text())
        vocabulary = content["model"]["vocab"]
        vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
        path.write_text(json.dumps(content))

    rope = {"rope_theta": 5e5, "rope_type": "default"}
    refused(lambda folder: change_config(folder, rope_parameters=rope), "rope_theta", "500000")
    refused(lambda folder: _rewrite(folder, hidden_size=64), "hidden_size: 64 and 32")
    refused(lambda folder: change_config(folder, tie_word_embeddings=False), "tie_word_embeddings: False and True")
    refused(rename, "model.stranger.weight")
    refused(reshape, "model.norm.weight (3,)", "(32,)")
    refused(another_word, "2 tokens differ, such as 'a', 'b'")
    with pytest.raises(UserError, match="nothing between a model and itself"):
        open_pair(ends[0], ends[0])


def _rewrite(folder: Path, **changes: Any) -> None:
    write_model(folder, llama_config(**changes), seed=1)
