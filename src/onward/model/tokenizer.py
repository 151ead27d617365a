"""A tokenizer as a value: its serialised form and the ids that matter, without transformers in every worker."""

import json
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onward.artifact import write_json, write_text
from onward.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_SAVED, _SAVED_IDS = "tokenizer.json", "ids.json"


@dataclass(frozen=True)
class LoadedTokenizer:
    """A fast tokenizer and its special ids.

    json: the serialised `tokenizers.Tokenizer`. bos_id: set only when the tokenizer itself puts a BOS before a
    text. prefix_id: the context of a text's first token when it is scored (BOS, else EOS, as lm-eval has it).
    vocabulary_size: number of ids, added tokens included.
    """

    json: str = field(repr=False)
    eos_id: int
    bos_id: int | None
    prefix_id: int
    unknown_id: int | None
    vocabulary_size: int
    fingerprint: str

    def fast(self) -> "Tokenizer":
        """Return the live tokenizer, made once per process."""
        return _from_json(self.json, reads_special=True)

    def encode_batch(self, texts: list[str], reads_special: bool = False) -> list[list[int]]:
        """Encode texts, adding nothing.

        reads_special: take a special token spelt out in a text for the token, as lm-eval does with its prompts. A
        document must not be able to end itself, so for documents it is ordinary text.
        """
        tokenizer = _from_json(self.json, reads_special)
        return [encoding.ids for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def decode(self, ids: list[int]) -> str:
        """Decode ids, special tokens left out."""
        return str(self.fast().decode(ids, skip_special_tokens=True))


@lru_cache(maxsize=4)
def _from_json(text: str, reads_special: bool) -> "Tokenizer":
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(text)
    tokenizer.encode_special_tokens = not reads_special
    return tokenizer


def save_tokenizer(tokenizer: LoadedTokenizer, folder: Path) -> None:
    """Write a tokenizer into an artifact, to be read without the model: tokenizer.json, which every library reads, and
    the ids that matter.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / _SAVED, tokenizer.json)
    write_json(folder / _SAVED_IDS, {key: value for key, value in asdict(tokenizer).items() if key != "json"})


def read_saved_tokenizer(folder: Path) -> LoadedTokenizer:
    """Read what `save_tokenizer` wrote; raises UserError when it is missing or damaged."""
    try:
        ids = json.loads((folder / _SAVED_IDS).read_bytes())
        return LoadedTokenizer(json=(folder / _SAVED).read_bytes().decode(), **ids)
    except (OSError, ValueError, TypeError) as error:
        todo = "prepare the corpus again"
        raise UserError("the tokenizer of this corpus cannot be read", str(folder), str(error), todo=todo) from error


def read_tokenizer(folder: Path) -> LoadedTokenizer:
    """Read the tokenizer files of a model folder: tokenizer.json, or a sentencepiece tokenizer.model."""
    config = json.loads((folder / "config.json").read_bytes())
    loaded = _as_written(folder) or open_tokenizer(folder)
    fast = loaded.backend_tokenizer
    fast.no_truncation()
    fast.no_padding()
    eos = loaded.eos_token_id if loaded.eos_token_id is not None else _first(config.get("eos_token_id"))
    bos = loaded.bos_token_id if loaded.bos_token_id is not None else _first(config.get("bos_token_id"))
    if eos is None:
        todo = "set eos_token in tokenizer_config.json: without it the model never learns where a document ends"
        raise UserError("the tokenizer has no end-of-text token", str(folder), expected="eos_token", todo=todo)
    plain = fast.encode("a", add_special_tokens=True).ids
    adds_bos = bos is not None and len(plain) > 0 and plain[0] == bos
    text = fast.to_str()
    return LoadedTokenizer(
        json=text,
        eos_id=eos,
        bos_id=bos if adds_bos else None,
        prefix_id=bos if bos is not None else eos,
        unknown_id=loaded.unk_token_id if loaded.unk_token_id != eos else None,
        vocabulary_size=len(loaded),
        fingerprint=sha256(f"{text}{eos}{bos}{adds_bos}".encode()).hexdigest()[:16],
    )


def _first(value: Any) -> int | None:
    """Configurations write one id, or a list of ids whose first ends a text."""
    first = value[0] if isinstance(value, list) else value
    return None if first is None else int(first)


@dataclass(frozen=True)
class _Written:
    """What transformers would make of a tokenizer.json that is used as it is written."""

    backend_tokenizer: Any
    eos_token_id: int | None
    bos_token_id: int | None
    unk_token_id: int | None

    def __len__(self) -> int:
        return int(self.backend_tokenizer.get_vocab_size(with_added_tokens=True))


def _as_written(folder: Path) -> _Written | None:
    """Read tokenizer.json without transformers (a second of imports) where its class changes nothing about it."""
    try:
        settings = json.loads((folder / "tokenizer_config.json").read_bytes())
        if settings.get("tokenizer_class") not in ("PreTrainedTokenizerFast", "TokenizersBackend"):
            return None
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception:  # tokenizers raises the bare class; transformers then tries, and words what is wrong
        return None
    names = [settings.get(f"{kind}_token") for kind in ("eos", "bos", "unk")]
    texts = [name.get("content") if isinstance(name, dict) else name for name in names]
    return _Written(tokenizer, *(None if text is None else tokenizer.token_to_id(text) for text in texts))


def open_tokenizer(folder: Path) -> Any:
    """Open the tokenizer with transformers; sentencepiece files become fast tokenizers on the way.

    Raises UserError when there is none that can be read.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    from onward.model.mobilellm import is_mobilellm, load_sentencepiece

    try:
        if (folder / "tokenizer.json").is_file() and not (folder / "tokenizer_config.json").is_file():
            return PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
        if is_mobilellm(folder) and not (folder / "tokenizer.json").is_file():
            return load_sentencepiece(folder)
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        expected = "tokenizer.json, or tokenizer.model of a Llama-style sentencepiece model"
        raise UserError("the tokenizer cannot be loaded", str(folder), str(error).split("\n")[0], expected) from error
