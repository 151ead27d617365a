import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from onward.errors import UserError
from onward.model.load import export_model, load_model
from onward.model.source import describe, resolve, weight_files, weights_among
from onward.model.tokenizer import read_tokenizer
from synthetic import END, llama_config, write_byte_tokenizer, write_model


def test_a_folder_is_described_and_its_fingerprint_follows_the_content(tmp_path: Path) -> None:
    write_model(tmp_path / "a", seed=0)
    write_model(tmp_path / "b", seed=0)
    write_model(tmp_path / "c", seed=1)
    (tmp_path / "a" / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    a, b, c = (resolve(str(tmp_path / name)) for name in "abc")
    assert a.fingerprint == b.fingerprint != c.fingerprint
    assert (a.license, b.license) == ("apache-2.0", None)


@pytest.mark.parametrize("name", ["./nothing", "/no/such/model", "justaname", "nope/", "onward/tiney"])
def test_a_model_that_is_nowhere_is_said_to_be(name: str) -> None:
    with pytest.raises(UserError, match="no such model folder"):
        resolve(name)


def test_a_path_into_a_folder_that_is_here_is_no_model_of_the_hub(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    with pytest.raises(UserError, match="no such model folder") as met:
        resolve("runs/nix")
    assert "runs is a folder here, and there is no nix in it" in str(met.value.todo)
    monkeypatch.setattr("onward.model.source._is_downloaded", lambda base, revision: True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE forbids"):  # asked of the Hub's own files
        resolve("runs/nix")


@pytest.mark.parametrize(
    ("files", "read", "fetched"),
    [
        (("model.safetensors", "consolidated.safetensors", "pytorch_model.bin"), "model.safetensors", "*.safetensors"),
        (("pytorch_model.bin", "consolidated.safetensors"), "pytorch_model.bin", "pytorch_model*.bin"),
        (("weights.safetensors",), "weights.safetensors", "*.safetensors"),
        (("pytorch_model-00001-of-00001.bin",), "pytorch_model-00001-of-00001.bin", "pytorch_model*.bin"),
    ],
)
def test_weights_are_those_that_transformers_opens(
    tmp_path: Path, files: tuple[str, ...], read: str, fetched: str
) -> None:
    for name in files:
        (tmp_path / name).touch()
    assert weight_files(tmp_path) == [tmp_path / read]
    assert weights_among(files) == fetched


def test_a_hub_model_without_network_is_a_message(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="HF_HUB_OFFLINE forbids") as met:
        resolve("someone/somemodel")
    assert "local folder" in str(met.value.todo)


def test_a_hub_that_refuses_the_connection_is_a_message(tmp_path: Path) -> None:
    # The Hub's client doubles its waiting with each attempt, 23 seconds in all; the attempts stay.
    code = (
        "import time\nwaits = []\ntime.sleep = waits.append\n"
        "from onward.errors import UserError\nfrom onward.model.source import resolve\n"
        "try:\n    resolve('someone/somemodel')\n"
        "except UserError as error:\n    print(error.what, error.todo, sep='|')\n"
    )
    away = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path)}
    child = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | away, capture_output=True, text=True, check=False
    )
    what, todo = child.stdout.strip().split("|")
    assert what == "the Hugging Face Hub cannot be reached", child.stderr
    assert "check the network" in todo
    assert "local folder" in todo
    assert child.stderr == "", "the Hub's client tells of its attempts"


def test_an_empty_folder_and_missing_weights_are_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no model"):
        describe(tmp_path)
    llama_config().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="cannot be loaded"):
        load_model(tmp_path)
    with pytest.raises(UserError, match="tokenizer cannot be loaded"):
        read_tokenizer(tmp_path)


def test_a_missing_tensor_is_an_error_and_not_a_random_one(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    write_model(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state.pop("model.layers.1.mlp.up_proj.weight")
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="weights are missing"):
        load_model(tmp_path)


def test_an_architecture_outside_transformers_is_refused(tmp_path: Path) -> None:
    write_byte_tokenizer(tmp_path)
    auto_map = {"AutoModelForCausalLM": "modeling_x.X", "AutoConfig": "configuration_x.C"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "unheard_of", "auto_map": auto_map}))
    (tmp_path / "modeling_x.py").write_text("raise SystemExit('remote code was run')")
    with pytest.raises(UserError, match="cannot be loaded"):
        load_model(tmp_path)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_export_opens_with_the_same_weights(tmp_path: Path, tied: bool, dtype: torch.dtype) -> None:
    from transformers import AutoModelForCausalLM

    model = load_model(write_model(tmp_path / "base", llama_config(tie_word_embeddings=tied)))
    export_model(model, tmp_path / "base", tmp_path / "out", dtype)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert opened.dtype == dtype
    for (name, a), (_, b) in zip(model.named_parameters(), opened.named_parameters(), strict=True):
        assert torch.equal(a.to(dtype), b), name
    assert not list((tmp_path / "out").glob("*.bin"))
    again = read_tokenizer(tmp_path / "out")
    assert again.encode_batch(["Straße"]) == read_tokenizer(tmp_path / "base").encode_batch(["Straße"])


def test_a_tied_head_of_another_name_is_exported_once(tmp_path: Path) -> None:
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, GPTNeoXConfig

    small = {"vocab_size": 257, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    config = GPTNeoXConfig(**small, num_attention_heads=4, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0)
    model = load_model(write_model(tmp_path / "base", config))
    export_model(model, tmp_path / "base", tmp_path / "out")
    assert sum("embed" in name for name in load_file(tmp_path / "out" / "model.safetensors")) == 1
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    ids = torch.arange(10)[None]
    with torch.no_grad():
        assert torch.equal(opened(input_ids=ids).logits, model(input_ids=ids).logits)


def test_a_folder_whose_weights_change_has_another_fingerprint(tmp_path: Path) -> None:
    first = describe(write_model(tmp_path, seed=0)).fingerprint
    second = describe(write_model(tmp_path, seed=1)).fingerprint
    assert first != second == describe(tmp_path).fingerprint


def test_a_tokenizer_knows_its_special_ids_and_comes_back_from_its_bytes(tmp_path: Path) -> None:
    import pickle

    found = read_tokenizer(write_model(tmp_path))
    assert (found.eos_id, found.bos_id, found.prefix_id, found.vocabulary_size) == (0, None, 0, 257)
    text = "two\nlines, naïve"
    (ids,) = pickle.loads(pickle.dumps(found)).encode_batch([text])
    assert len(ids) == len(text.encode())
    assert found.decode(ids) == text


def test_a_text_cannot_spell_the_end_of_a_document(tmp_path: Path) -> None:
    found = read_tokenizer(write_model(tmp_path))
    (ids,) = found.encode_batch([f"before{END}after"])
    assert found.eos_id not in ids
    assert found.decode(ids) == f"before{END}after"


def test_reading_a_tokenizer_as_written_equals_reading_it_with_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_model(tmp_path)
    as_written = read_tokenizer(folder)
    monkeypatch.setattr("onward.model.tokenizer._as_written", lambda _: None)
    slow = read_tokenizer(folder)
    assert json.loads(as_written.json) == json.loads(slow.json)
    ids = "eos_id", "bos_id", "prefix_id", "unknown_id", "vocabulary_size"
    assert [getattr(as_written, name) for name in ids] == [getattr(slow, name) for name in ids]


def test_real_tokenizers_have_an_end_of_text(shared_data: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "gpt2", "eos_token_id": 50256, "bos_token_id": 50256})
    )
    (tmp_path / "tokenizer.json").write_bytes((shared_data / "tokenizers" / "gpt2" / "tokenizer.json").read_bytes())
    found = read_tokenizer(tmp_path)
    assert (found.eos_id, found.bos_id, found.vocabulary_size) == (50256, None, 50257)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(UserError, match="no end-of-text token"):
        read_tokenizer(tmp_path)
