"""Train the bases beside `onward/tiny` for the study of sizes, about 1M and 10M parameters.

    python tools/train_small_bases.py --data ../shared/data/general --out runs/bases

They read the same books and stories as `onward/tiny`, in the same order and through its tokenizer, and none of its
held-out books; less of them, so that the command ends in minutes: each base stops after `--tokens`. `onward/tiny` read
14M tokens. A folder that is there already is left alone; a killed training goes on from its last state.
"""

import argparse
import shutil
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from train_tiny_base import Shape, make_tokens, train

SHAPES = {
    "1m": Shape(layers=4, hidden=96, feed_forward=256, heads=3, key_value_heads=1),  # 1,180,512 parameters
    "10m": Shape(layers=7, hidden=320, feed_forward=864, heads=10, key_value_heads=2),  # 10,152,640
}
COOLDOWN = 0.4


def make(name: str, shape: Shape, tokens: np.ndarray, budget_tokens: int, out: Path) -> None:
    """Train one base into `out/name`, a plain Hugging Face folder in bf16 with the tokenizer of `onward/tiny`."""
    build = out / f".{name}.building"
    build.mkdir(parents=True, exist_ok=True)
    train(tokens, build, budget_tokens, COOLDOWN, shape)
    model = LlamaForCausalLM.from_pretrained(build / "model-fp32").to(torch.bfloat16)
    print(f"{name}: {model.num_parameters():,} parameters, {budget_tokens:,} tokens")
    finished = build / "finished"
    model.save_pretrained(finished)
    tiny = resources.files("onward") / "model" / "tiny"
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (finished / file).write_bytes((tiny / file).read_bytes())
    finished.rename(out / name)
    shutil.rmtree(build)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the three general sources")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokens", type=float, default=2e6, help="token budget of each base")
    parser.add_argument("--only", choices=SHAPES, help="train this one alone")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "tokens.npy"
    if not path.exists():
        tiny = str(resources.files("onward") / "model" / "tiny")
        make_tokens(arguments.data, PreTrainedTokenizerFast.from_pretrained(tiny), path)
    tokens = np.load(path, mmap_mode="r")
    for name, shape in SHAPES.items():
        if arguments.only in (None, name) and not (arguments.out / name).exists():
            make(name, shape, tokens, int(arguments.tokens), arguments.out)


if __name__ == "__main__":
    main()
