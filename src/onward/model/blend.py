"""Blends: models on the straight line between a base and what became of it, theta0 + share (theta - theta0).

WiSE-FT (Wortsman et al. 2021, arXiv 2109.01903, equation 1) gives up a part of what fine-tuning changed for what it
forgot. Tensors are read one pair at a time; only what is written, or the one model that is scored, is held whole.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onward.artifact import building, find_damage, fingerprint, flatten, read_manifest, write_json
from onward.errors import UserError
from onward.model.difficult_texts import difficult_texts
from onward.model.load import export_model, load_model, stored_dtype
from onward.model.mobilellm import is_mobilellm, llama_config
from onward.model.source import Between, ModelSource, describe, weight_files
from onward.model.tokenizer import read_tokenizer

if TYPE_CHECKING:
    import torch

FACTS = "blend.json"
_METHOD = 1
"""Raised when a blend of the same models would come out different."""
_NOT_THE_NETWORK = {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache"}
_NOT_THE_NETWORK |= {"bos_token_id", "eos_token_id", "pad_token_id"}  # compared as the tokenizer has them
_SHOWN = 3


@dataclass(frozen=True)
class Pair:
    """Two models of one shape. names: of the tensors that make a model of it, tied ones once.

    empty: the model that they fill, without weights. base_tensor, adapted_tensor: read one, in its stored type.
    """

    base: ModelSource
    adapted: ModelSource
    names: tuple[str, ...]
    empty: Any
    base_tensor: "Callable[[str], torch.Tensor]"
    adapted_tensor: "Callable[[str], torch.Tensor]"

    def tensor(self, name: str, share: float) -> "torch.Tensor":
        """Return a tensor of the blend: computed in fp32, in the adapted model's type; the ends are bit for bit."""
        import torch

        assert 0 <= share <= 1, "a blend lies between the two"
        if share == 0:
            return self.base_tensor(name)
        adapted = self.adapted_tensor(name)
        if share == 1:
            return adapted
        base = self.base_tensor(name)
        if not adapted.is_floating_point():
            if not torch.equal(base, adapted):
                raise _unlike("the models differ in a tensor of whole numbers", self.base, self.adapted, name, "equal")
            return adapted
        return torch.lerp(base.float(), adapted.float(), share).to(adapted.dtype)


def open_pair(base: ModelSource, adapted: ModelSource) -> Pair:
    """Open two models for blending.

    Raises UserError, naming what differs, when they are not of one network and one tokenizer, or are the same model.
    """
    if base.fingerprint == adapted.fingerprint:
        raise UserError("there is nothing between a model and itself", got=f"{base.name}, {adapted.name}")
    _require_one_network(base, adapted)
    _require_one_tokenizer(base, adapted)
    empty = _empty_model(adapted)
    held = dict(empty.named_parameters()) | dict(empty.named_buffers())
    names = tuple(name for name in empty.state_dict() if name in held)
    read = []
    for source in (base, adapted):
        shapes, tensor = _open(source, names, empty)
        for name in names:
            if shapes[name] != tuple(held[name].shape):
                got, expected = f"{name} {shapes[name]}", str(tuple(held[name].shape))
                raise UserError("a tensor has another shape than the config says", source.name, got, expected)
        read.append(tensor)
    return Pair(base, adapted, names, empty, *read)


def blend_source(base: ModelSource, adapted: ModelSource, share: float) -> ModelSource:
    """Return the model at a share of the way from the base to the adapted model, to be scored; the ends themselves at
    0 and 1. Its weights come into being when it is loaded, on no disk.
    """
    if share in (0, 1):
        return adapted if share else base
    made_from = {"method": _METHOD, "base": base.fingerprint, "adapted": adapted.fingerprint, "share": share}
    name = f"{share:g} of the way from {base.name} to {adapted.name}"
    return replace(adapted, name=name, fingerprint=fingerprint(made_from), between=Between(base.folder, share))


def load_blend(source: ModelSource, dtype: "torch.dtype", device: str) -> Any:
    """Load the adapted model and write the blend's weights into it, rounded as `write_blend` rounds them."""
    import torch

    assert source.between is not None
    model = load_model(replace(source, between=None), dtype)
    pair = open_pair(describe(source.between.base), describe(source.folder))
    held = dict(model.named_parameters()) | dict(model.named_buffers())
    with torch.no_grad():
        for name in pair.names:
            held[name].copy_(pair.tensor(name, source.between.share))
    return model.to(device).eval()


def write_blend(pair: Pair, share: float, folder: Path, facts: Mapping[str, Any]) -> None:
    """Write a blend as a plain Hugging Face folder, as `export_model` does, and how it came about as blend.json.

    facts: what else is to be said of it, how it was chosen for one. Another blend that stands there, or a damaged one,
    is replaced.
    """
    from transformers import GenerationConfig

    sides = {"base": pair.base, "adapted": pair.adapted}
    said = {side: {"name": model.name, "fingerprint": model.fingerprint} for side, model in sides.items()}
    made_from = {"method": _METHOD, **said, "share": share, **facts}
    if _stands(folder, fingerprint(made_from)):
        return
    with building(folder, "blend", made_from) as aside:
        empty = pair.empty.to(stored_dtype(pair.adapted if share else pair.base))
        if (pair.adapted.folder / "generation_config.json").is_file():
            empty.generation_config = GenerationConfig.from_pretrained(pair.adapted.folder, local_files_only=True)
        weights = {name: pair.tensor(name, share) for name in pair.names}
        export_model(empty, pair.adapted.folder, aside, weights=weights)
        write_json(aside / FACTS, {**said, "share": share, **facts})


def _stands(folder: Path, made_from: str) -> bool:
    """Whether the blend of these inputs, by their fingerprint, is there and whole."""
    try:
        manifest = read_manifest(folder)
    except UserError:  # damaged
        return False
    return (
        manifest is not None
        and manifest.fingerprint == made_from
        and find_damage(folder, manifest, checksums=True) is None
    )


def _require_one_network(base: ModelSource, adapted: ModelSource) -> None:
    first, second = (_settings(model) for model in (base, adapted))
    changed = [key for key in sorted(first | second) if first.get(key) != second.get(key)]
    if changed:
        rows = [f"{key}: {first.get(key)!r} and {second.get(key)!r}" for key in changed[:_SHOWN]]
        more = f" and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
        raise _unlike("these are not two models of one network", base, adapted, "; ".join(rows) + more, "one config")


def _settings(model: ModelSource) -> dict[str, Any]:
    """The configuration, defaults filled in, without what does not say how the network computes."""
    flat = flatten(_config(model).to_dict())
    return {key: value for key, value in flat.items() if key.rpartition(".")[2] not in _NOT_THE_NETWORK}


def _config(model: ModelSource) -> Any:
    from transformers import AutoConfig

    if is_mobilellm(model.folder):
        return llama_config(model.folder)
    try:
        return AutoConfig.from_pretrained(model.folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        expected = "a model whose code is part of transformers"
        got = str(error).split("\n")[0][:300]
        raise UserError("the model's configuration cannot be read", str(model.folder), got, expected) from error


def _require_one_tokenizer(base: ModelSource, adapted: ModelSource) -> None:
    first, second = (read_tokenizer(model.folder) for model in (base, adapted))
    if first.fingerprint == second.fingerprint:
        return
    ids, others = (tokenizer.fast().get_vocab(with_added_tokens=True) for tokenizer in (first, second))
    what = "the two models have different tokenizers"
    if ids != others:
        unlike = sorted(token for token in ids.keys() | others.keys() if ids.get(token) != others.get(token))
        got = f"{len(unlike):,} tokens differ, such as {', '.join(map(repr, unlike[:_SHOWN]))}"
        raise _unlike(what, base, adapted, got, "one vocabulary")
    for name in ("eos_id", "prefix_id", "bos_id"):
        if getattr(first, name) != getattr(second, name):
            got = f"{name} {getattr(first, name)} and {getattr(second, name)}"
            raise _unlike(what, base, adapted, got, "the same special tokens")
    texts = list(difficult_texts())  # what is written differently may still say the same
    pairs = zip(texts, first.encode_batch(texts), second.encode_batch(texts), strict=True)
    if (text := next((text for text, one, other in pairs if one != other), None)) is not None:
        raise _unlike(what, base, adapted, f"{text[:60]!r} becomes other tokens", "the same tokens of every text")


def _unlike(what: str, base: ModelSource, adapted: ModelSource, got: str, expected: str) -> UserError:
    todo = "give the base that the adapted model was trained from"
    return UserError(what, f"{base.name} and {adapted.name}", got, expected, todo)


def _empty_model(model: ModelSource) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(_config(model), trust_remote_code=False)
    empty.tie_weights()
    return empty


def _open(
    source: ModelSource, names: tuple[str, ...], empty: Any
) -> "tuple[dict[str, tuple[int, ...]], Callable[[str], torch.Tensor]]":
    """Return the shapes of a model's tensors and a way to read one of them.

    Files that call their tensors otherwise than the model does (older names, a pickled state dict) are read by
    transformers, and then stand in memory as a whole.
    """
    from safetensors import SafetensorError, safe_open

    shapes: dict[str, tuple[int, ...]] = {}
    places: dict[str, Any] = {}
    for path in (path for path in weight_files(source.folder) if path.suffix == ".safetensors"):
        try:
            file: Any = safe_open(path, "pt")
            for name in file.keys():  # noqa: SIM118 (it is no mapping)
                shapes[name], places[name] = tuple(file.get_slice(name).get_shape()), file
        except SafetensorError as error:
            todo = "restore or download the file again"
            raise UserError("the model's weights are damaged", str(path), str(error), todo=todo) from error
    if not set(names) <= set(places):
        state = load_model(source, stored_dtype(source)).state_dict()
        return {name: tuple(tensor.shape) for name, tensor in state.items()}, state.__getitem__
    strangers = sorted(name for name in places if name not in names and not _is_known(name, empty))
    if strangers:
        got = f"{len(strangers)} more, such as {', '.join(strangers[:_SHOWN])}"
        raise UserError("there are tensors that the model does not have", source.name, got, f"{len(names)} tensors")
    return shapes, lambda name: places[name].get_tensor(name)


def _is_known(name: str, empty: Any) -> bool:
    """Whether a tensor that a model does not need may stand in its files: a tied one, or a table it computes itself."""
    ignored = getattr(empty, "_keys_to_ignore_on_load_unexpected", None) or ()
    buffers = (buffer for buffer, _ in empty.named_buffers())
    tables = (*ignored, r"rotary_emb\.inv_freq$")
    return name in empty.state_dict() or name in buffers or any(re.search(table, name) for table in tables)
