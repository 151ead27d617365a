"""Train `onward/tiny`, the small base model that ships in the package.

    python tools/train_tiny_base.py --data GENERAL_FOLDER --out BUILD_FOLDER

Three steps, each skipped when its output exists: a byte-level BPE tokenizer, one flat token file,
and a Llama of 3.9M parameters trained for less than one epoch on public-domain books and CC BY stories.
The books in the held-out split (by the corpus stage's own rule, grouped by book) are never trained on,
so any recipe that holds out the same general text measures forgetting on unseen books.

`tools/card_tiny_base.py` then measures the model and writes the card and the bf16 weights.
"""

import argparse
import io
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import xxhash
import zstandard
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SOURCES = ("books_classics.jsonl.zst", "books_eltec_eng.jsonl.zst", "storybooks.jsonl.zst")
HELD_OUT_SHARE = 0.03
END_OF_TEXT = "<|endoftext|>"
VOCABULARY = 8192
CONTEXT_TOKENS = 1024
BATCH_SEQUENCES = 2
PEAK_LEARNING_RATE = 3e-3
WARMUP_STEPS = 300


def is_held_out(group: str, share: float = HELD_OUT_SHARE) -> bool:
    """The corpus stage's rule: a uniform 64-bit hash of the group (here: one book) below the share."""
    return xxhash.xxh3_64_intdigest(group.encode()) < share * 2**64


def read_documents(folder: Path) -> Iterator[dict[str, str]]:
    """Yield the records of the three general sources in file order."""
    for name in SOURCES:
        with open(folder / name, "rb") as file:
            stream = zstandard.ZstdDecompressor().stream_reader(file)
            for line in io.TextIOWrapper(stream, encoding="utf-8"):
                yield json.loads(line)


def make_tokenizer(data: Path, out: Path) -> PreTrainedTokenizerFast:
    """Byte-level BPE over the training books only; one special token ends a document and pads."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (r["text"] for n, r in enumerate(read_documents(data)) if n % 3 == 0 and not is_held_out(r["source"]))
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        model_max_length=CONTEXT_TOKENS,
        clean_up_tokenization_spaces=False,
    )
    fast.save_pretrained(out)
    return fast


def make_tokens(data: Path, tokenizer: PreTrainedTokenizerFast, path: Path) -> None:
    """One uint16 file: the training documents in a seeded random order, each ended by the end-of-text token."""
    records = [r["text"] for r in read_documents(data) if not is_held_out(r["source"])]
    np.random.default_rng(0).shuffle(records)
    pieces: list[np.ndarray] = []
    for start in range(0, len(records), 256):
        encoded = tokenizer(records[start : start + 256])["input_ids"]
        pieces += [np.array([*ids, tokenizer.eos_token_id], dtype=np.uint16) for ids in encoded]
    np.save(path, np.concatenate(pieces))


def learning_rate(step: int, total_steps: int, cooldown: float) -> float:
    """Warm-up, constant, then a 1-sqrt cooldown over the last `cooldown` of the steps (arXiv 2405.18392)."""
    start = round(total_steps * (1 - cooldown))
    if step < WARMUP_STEPS:
        return PEAK_LEARNING_RATE * (step + 1) / WARMUP_STEPS
    if step < start:
        return PEAK_LEARNING_RATE
    return PEAK_LEARNING_RATE * (1 - math.sqrt((step - start) / (total_steps - start)))


@dataclass(frozen=True)
class Shape:
    """Layers, width, width of the feed-forward, heads of 32 and key-value heads."""

    layers: int = 6
    hidden: int = 192
    feed_forward: int = 512
    heads: int = 6
    key_value_heads: int = 2


TINY = Shape()
"""3.93M parameters with tied embeddings, 7.9 MB in bf16."""


def build_model(shape: Shape = TINY) -> LlamaForCausalLM:
    """A Llama of random weights, the same ones every time."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=shape.hidden,
            intermediate_size=shape.feed_forward,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.key_value_heads,
            max_position_embeddings=CONTEXT_TOKENS,
            rms_norm_eps=1e-5,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=None,
        )
    )


def train(tokens: np.ndarray, out: Path, budget_tokens: int, cooldown: float, shape: Shape = TINY) -> None:
    """Train to `budget_tokens` (resuming from `out/state.pt` when there is one) and save an fp32 model."""
    model = build_model(shape)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK_LEARNING_RATE, betas=(0.9, 0.95), fused=True)
    step_tokens = BATCH_SEQUENCES * CONTEXT_TOKENS
    total_steps = budget_tokens // step_tokens
    first = 0
    state_path = out / "state.pt"
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]

    @torch.compile
    def loss_of(ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=ids, use_cache=False).logits
        return F.cross_entropy(logits.view(-1, VOCABULARY).float(), labels.view(-1))

    started, log = time.perf_counter(), open(out / "log.jsonl", "a", buffering=1)
    for step in range(first, total_steps):
        flat = torch.from_numpy(tokens[step * step_tokens : (step + 1) * step_tokens + 1].astype(np.int64))
        ids, labels = flat[:-1].view(BATCH_SEQUENCES, -1), flat[1:].view(BATCH_SEQUENCES, -1)
        rate = learning_rate(step, total_steps, cooldown)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = loss_of(ids, labels)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 50 == 0 or step == total_steps - 1:
            speed = (step + 1 - first) * step_tokens / (time.perf_counter() - started)
            row = {"step": step, "tokens": (step + 1) * step_tokens, "loss_nats": round(loss.item(), 4)}
            row |= {"learning_rate": rate, "gradient_norm": round(norm.item(), 3), "tokens_per_second": round(speed)}
            log.write(json.dumps(row) + "\n")
        if step % 1000 == 999:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            torch.save(state, out / "state.tmp")
            (out / "state.tmp").replace(state_path)
    model.save_pretrained(out / "model-fp32")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the three general sources")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokens", type=float, default=14e6, help="token budget; the schedule ends there")
    parser.add_argument("--cooldown", type=float, default=0.4, help="share of the steps in the 1-sqrt cooldown")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    folder = arguments.out / "tokenizer"
    exists = folder.exists()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder) if exists else make_tokenizer(arguments.data, folder)
    tokens_path = arguments.out / "tokens.npy"
    if not tokens_path.exists():
        make_tokens(arguments.data, tokenizer, tokens_path)
    tokens = np.load(tokens_path, mmap_mode="r")
    print(f"{len(tokens):,} training tokens")
    train(tokens, arguments.out, int(arguments.tokens), arguments.cooldown)


if __name__ == "__main__":
    main()
