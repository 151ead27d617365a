"""Small stand-ins made on the fly: a byte tokenizer, random models of real architectures, a packed corpus."""

import json
from pathlib import Path
from typing import Any

import numpy as np

END = "<|end|>"


def write_byte_tokenizer(folder: Path) -> Path:
    """A tokenizer with one token per byte (ids 1..256) and an end-of-text token (id 0)."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {END: 0} | {character: n for n, character in enumerate(alphabet, start=1)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, bos_token=END).save_pretrained(folder)
    return folder


def llama_config(**changes: Any) -> Any:
    from transformers import LlamaConfig

    settings: dict[str, Any] = {
        "vocab_size": 257,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    return LlamaConfig(**(settings | changes))


def write_model(folder: Path, config: Any = None, seed: int = 0) -> Path:
    """A random causal LM with the byte tokenizer, as a plain Hugging Face folder."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config or llama_config())
    model.save_pretrained(folder)
    return write_byte_tokenizer(folder)


def write_corpus(
    folder: Path, lengths: list[int], sequence_tokens: int, seed: int = 0, block_documents: int | None = None
) -> Path:
    """A packed corpus of random documents (ids 1..256, EOS 0), the way `prepare` leaves it for the batches.

    block_documents: documents in each block but the last (None: one block holds all).
    """
    from onward.corpus.ledger import Count, Tally

    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    documents = [np.append(random.integers(1, 257, length - 1), 0).astype(np.uint16) for length in lengths]
    tally = Tally()
    tally.read = tally.kept = Count(len(lengths), sum(lengths))
    tally.kept_tokens = sum(lengths)
    step = block_documents or len(lengths)
    for number, first in enumerate(range(0, len(lengths), step)):
        packing = write_block(folder, number, documents[first : first + step], sum(lengths[:first]), sequence_tokens)
        tally.sequences += packing.num_sequences
        tally.packed_tokens += packing.packed_tokens
        tally.padding_tokens += packing.padding_tokens
    tally.close(sequence_tokens).save(folder)
    (folder / "manifest.json").write_text(
        json.dumps({"kind": "corpus", "fingerprint": folder.name, "made_from": {}, "files": {}, "created": ""})
    )
    return folder


def write_block(folder: Path, number: int, documents: list[Any], first_token: int, sequence_tokens: int) -> Any:
    """The files of one block that the batches read."""
    from onward.corpus.packing import pack

    np.save(folder / f"tokens-{number:05d}.npy", np.concatenate(documents))
    lengths = np.array([len(document) for document in documents], dtype=np.int64)
    packing = pack(lengths, sequence_tokens, first_offset=first_token)
    packing.save(folder / f"packing-{number:05d}.npz")
    return packing
