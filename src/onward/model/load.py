"""Load a causal language model from plain files, without remote code and without unpickling objects."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onward.errors import UserError
from onward.model.mobilellm import check_tensors, is_mobilellm, llama_config
from onward.model.source import ModelSource, describe, weight_files

if TYPE_CHECKING:
    import torch


def load_model(source: ModelSource | Path, dtype: "torch.dtype | None" = None, device: str = "cpu") -> Any:
    """Return the `PreTrainedModel` in evaluation mode, its weights as `dtype` (None: float32) on `device`.

    Raises UserError when the architecture needs remote code, weights are missing, or tensors do not fit.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    source = source if isinstance(source, ModelSource) else describe(source)
    dtype = torch.float32 if dtype is None else dtype
    if source.between is not None:
        from onward.model.blend import load_blend

        return load_blend(source, dtype, device)
    if is_mobilellm(source.folder):
        return _load_mobilellm(source.folder, dtype).to(device).eval()
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            source.folder,
            dtype=dtype,
            trust_remote_code=False,
            local_files_only=True,
            weights_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        expected = "a decoder-only model whose code is part of transformers, with safetensors weights"
        got = str(error).split("\n")[0][:300]
        raise UserError("the model cannot be loaded", str(source.folder), got, expected) from error
    lacking = sorted(found["missing_keys"])
    if lacking:
        raise UserError("weights are missing", str(source.folder), f"no tensor for {', '.join(lacking[:5])}")
    return model.to(device).eval()


def _load_mobilellm(folder: Path, dtype: "torch.dtype") -> Any:
    """Build the Llama, check every tensor against the configuration, copy the weights in."""
    import torch
    from transformers import LlamaForCausalLM

    config = llama_config(folder)
    state = _read_weights(folder)
    check_tensors(set(state), config, folder)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    wanted = {name: tensor.shape for name, tensor in model.state_dict().items()}
    for name, tensor in state.items():
        if name in wanted and tensor.shape != wanted[name]:
            got, expected = str(tuple(tensor.shape)), str(tuple(wanted[name]))
            raise UserError(f"tensor {name} has another shape than the config says", str(folder), got, expected)
    model = LlamaForCausalLM(config).to(dtype)
    kept = {name: tensor for name, tensor in state.items() if name in wanted}
    lacking = set(model.load_state_dict(kept, strict=False).missing_keys)
    assert lacking <= {"lm_head.weight"}, f"check_tensors let {lacking} through"
    model.tie_weights()
    return model


def _read_weights(folder: Path) -> dict[str, Any]:
    """Read a state dict from safetensors, else from a pickle with weights_only (no objects unpickled)."""
    from pickle import UnpicklingError

    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    state: dict[str, Any] = {}
    for path in weight_files(folder):
        try:
            if path.suffix == ".safetensors":
                state |= load_file(path)
            else:
                state |= torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except (UnpicklingError, RuntimeError, SafetensorError) as error:
            todo = "download the file again; a file that holds more than tensors is never opened"
            raise UserError("weights cannot be read safely", str(path), str(error).split("\n")[0], todo=todo) from error
    return state


def export_model(
    model: Any,
    base: Path,
    folder: Path,
    dtype: "torch.dtype | None" = None,
    weights: "Mapping[str, torch.Tensor] | None" = None,
) -> None:
    """Write `model` as a plain Hugging Face folder that `AutoModelForCausalLM.from_pretrained` opens.

    base: folder of the base model, whose tokenizer is written as tokenizer.json beside the weights.
    dtype: of the written weights; None keeps the model's. weights: parameters by name that are written instead of the
    model's own, which may be sharded or have moved on since. Where `model` has adapters of peft, these must be all, by
    the base's names and merged.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    # Parameters are listed once; a tied head, whatever its name, is the embedding again and is not written.
    kept = dict(model.named_parameters()) | dict(model.named_buffers()) | dict(weights or {})
    # peft puts a layer of its own around an adapted one, and two factors beside it.
    names = [name.replace(".base_layer.", ".") for name in model.state_dict() if ".lora_" not in name]
    state = {
        name: kept[name].detach().to(device="cpu", dtype=dtype or kept[name].dtype).contiguous()
        for name in names
        if name in kept
    }
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    written = dtype or next(iter(model.parameters())).dtype
    config = model.config.to_dict() | {"architectures": [type(model).__name__], "dtype": str(written).split(".")[1]}
    type(model.config)(**{k: v for k, v in config.items() if k != "model_type"}).save_pretrained(folder)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(folder)
    _copy_tokenizer(base, folder)


def stored_dtype(base: ModelSource) -> "torch.dtype":
    """Return the type in which the base model's weights are stored; what is made from it is written in the same."""
    import torch
    from transformers import AutoConfig

    if is_mobilellm(base.folder):
        return torch.float16
    config = AutoConfig.from_pretrained(base.folder, local_files_only=True, trust_remote_code=False)
    stored = getattr(config, "dtype", None)
    return stored if isinstance(stored, torch.dtype) else torch.float32


def _copy_tokenizer(base: Path, folder: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    from onward.model.tokenizer import open_tokenizer

    loaded = open_tokenizer(base)
    fast = loaded.backend_tokenizer
    fast.no_truncation()
    fast.no_padding()
    special = {
        name: getattr(loaded, name)
        for name in ("bos_token", "eos_token", "unk_token", "pad_token")
        if getattr(loaded, name)
    }
    PreTrainedTokenizerFast(
        tokenizer_object=fast, clean_up_tokenization_spaces=False, model_max_length=loaded.model_max_length, **special
    ).save_pretrained(folder)
