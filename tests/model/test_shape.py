import json
from pathlib import Path
from typing import Any

import pytest
import torch

from onward.errors import UserError
from onward.model.shape import ModelShape, read_shape, shape_of
from onward.model.source import resolve

SMALL: dict[str, Any] = {
    "vocab_size": 257,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
MOBILELLM = {
    "model_type": "mobilellm",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 2048,
    "vocab_size": 32000,
    "share_embedding": True,
    "tie_word_embeddings": False,
}


def small(model_type: str, **changes: Any) -> dict[str, Any]:
    sizes = SMALL | {"model_type": model_type} | changes
    return {key: value for key, value in sizes.items() if key != "num_key_value_heads" or model_type != "gpt_neox"}


CONFIGURATIONS = {
    "llama-tied": small("llama", tie_word_embeddings=True),
    "llama-untied": small("llama"),
    "llama-biases": small("llama", attention_bias=True, mlp_bias=True),
    "llama-head-width": small("llama", head_dim=16),
    "llama-no-groups": small("llama", num_key_value_heads=None),
    "mistral": small("mistral", sliding_window=None),
    "mistral-window": small("mistral"),
    "qwen2": small("qwen2"),
    "qwen3": small("qwen3"),
    "qwen3-biases": small("qwen3", attention_bias=True, head_dim=8),
    "qwen3-windows": small("qwen3", use_sliding_window=True, sliding_window=16, max_window_layers=1),
    "gpt-neox": small("gpt_neox"),
    "gpt-neox-no-biases": small("gpt_neox", attention_bias=False, tie_word_embeddings=True),
    "gemma3": small("gemma3_text", sliding_window=8, sliding_window_pattern=2),
    "gemma3-untied": small("gemma3_text", tie_word_embeddings=False, head_dim=8),
}


def write(folder: Path, config: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def built(folder: Path) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))


def multiplying(model: Any) -> int:
    """Weights of the linear layers; a tied head is one of them."""
    return sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))


@pytest.mark.parametrize("config", [pytest.param(c, id=name) for name, c in CONFIGURATIONS.items()])
def test_counts_from_the_configuration_are_those_of_the_model(tmp_path: Path, config: dict[str, Any]) -> None:
    shape = shape_of(config)
    assert shape is not None
    model = built(write(tmp_path, config))
    embeddings = {id(p): p.numel() for p in (model.get_input_embeddings().weight, model.get_output_embeddings().weight)}
    assert shape.parameters == model.num_parameters()
    assert shape.embedding_parameters == sum(embeddings.values())
    assert shape.matmul_parameters == multiplying(model)
    text = model.config
    kinds = getattr(text, "layer_types", None) or ["sliding_attention"] * text.num_hidden_layers
    window = getattr(text, "sliding_window", None)
    assert shape.windows == tuple(window if kind == "sliding_attention" else None for kind in kinds)
    assert shape.head_dim == (getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)
    assert shape.kv_heads == (getattr(text, "num_key_value_heads", None) or text.num_attention_heads)


def test_mobilellm_shares_its_embedding_whatever_its_configuration_says_of_tying(tmp_path: Path) -> None:
    shape = read_shape(write(tmp_path, MOBILELLM))
    assert (shape.parameters, shape.tied) == (124_635_456, True)  # the published count
    assert shape.matmul_parameters == 124_635_456 - 30 * 2 * 576 - 576


@pytest.mark.parametrize(
    ("layers", "width", "heads", "kv_heads", "inner", "parameters"),
    [
        pytest.param(32, 960, 15, 5, 2560, 345_355_200, id="350M"),
        pytest.param(40, 1152, 18, 6, 3072, 603_188_352, id="600M"),
        pytest.param(54, 1280, 20, 5, 3584, 1_005_461_760, id="1B"),
    ],
)
def test_the_larger_mobilellms_have_their_published_counts(
    tmp_path: Path, layers: int, width: int, heads: int, kv_heads: int, inner: int, parameters: int
) -> None:
    sizes = {"num_hidden_layers": layers, "hidden_size": width, "num_attention_heads": heads}
    sizes |= {"num_key_value_heads": kv_heads, "intermediate_size": inner}
    assert read_shape(write(tmp_path, MOBILELLM | sizes)).parameters == parameters


def test_an_architecture_that_is_not_known_is_counted_from_a_model_without_memory(tmp_path: Path) -> None:
    config = small("olmo2", hidden_size=64, tie_word_embeddings=True)
    assert shape_of(config) is None
    model = built(write(tmp_path, config))
    shape = read_shape(tmp_path)
    assert (shape.parameters, shape.tied) == (model.num_parameters(), True)
    assert shape.matmul_parameters == multiplying(model)
    assert (shape.layers, shape.hidden, shape.kv_heads, shape.gated) == (3, 64, 2, True)


def test_a_size_left_to_the_defaults_of_transformers_is_found_all_the_same(tmp_path: Path) -> None:
    config = small("qwen3")
    del config["num_key_value_heads"], config["num_attention_heads"]
    assert shape_of(config) is None
    assert read_shape(write(tmp_path, config)).parameters == built(tmp_path).num_parameters()


def test_of_experts_only_those_that_a_token_meets_multiply_it(tmp_path: Path) -> None:
    def shape(active: int) -> ModelShape:
        return read_shape(write(tmp_path, small("mixtral", num_local_experts=4, num_experts_per_tok=active)))

    experts = 3 * 4 * 3 * 32 * 48
    assert shape(4).matmul_parameters - shape(1).matmul_parameters == experts * 3 // 4
    assert shape(4).parameters == shape(1).parameters


def test_the_packaged_base_has_the_shape_of_its_weights() -> None:
    from safetensors import safe_open

    source = resolve("onward/tiny")
    with safe_open(source.folder / "model.safetensors", "np") as weights:
        stored = sum(int(torch.Size(weights.get_slice(name).get_shape()).numel()) for name in weights.keys())  # noqa: SIM118
    assert read_shape(source).parameters == stored


def test_a_damaged_configuration_is_the_users_to_mend(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="configuration cannot be read"):
        read_shape(tmp_path)


def test_a_model_that_transformers_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be built"):
        read_shape(write(tmp_path, small("no_such_model")))


def test_no_torch_is_needed_for_the_architectures_known(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = "import sys; from pathlib import Path; from onward.model.shape import read_shape; "
    code += f"read_shape(Path({str(write(tmp_path, MOBILELLM))!r})); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
