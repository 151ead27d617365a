"""Public text by name for bases whose training text is not public: `path: proxy:fineweb`.

A proxy is a sample of its data set, some 50M tokens to 15B: reading stops when the wanted tokens are there.
"""

from dataclasses import dataclass

from onward.errors import nearest

PREFIX = "proxy:"


@dataclass(frozen=True)
class Proxy:
    """path: files on the Hub. license: of the data set, as its owner states it. what: it is, for people."""

    path: str
    license: str
    what: str


PROXIES = {
    "fineweb": Proxy("hf://datasets/HuggingFaceFW/fineweb/sample/10BT/*.parquet", "odc-by", "web pages (2406.17557)"),
    "fineweb-edu": Proxy(
        "hf://datasets/HuggingFaceFW/fineweb-edu/sample/10BT/*.parquet", "odc-by", "educational web pages (2406.17557)"
    ),
    "dclm": Proxy(
        "hf://datasets/mlfoundations/dclm-baseline-1.0/global-shard_01_of_10/local-shard_0_of_10/"
        "shard_0000000?_processed.jsonl.zst",
        "cc-by-4.0",
        "web pages chosen by a classifier (2406.11794)",
    ),
    "pile": Proxy(
        "hf://datasets/monology/pile-uncopyrighted/train/00.jsonl.zst",
        "other",
        "web pages, papers, code, books, without the Pile's copyrighted parts (2101.00027)",
    ),
    # The three parts of HuggingFaceTB/smollm-corpus in one order: read one after the other, the first would be all.
    "smollm": Proxy(
        "hf://datasets/Avelina/smollm-corpus/data00/train-000*.jsonl.zst",
        "odc-by",
        "educational web pages, synthetic textbooks and Python, mixed",
    ),
    "slimpajama": Proxy(
        "hf://datasets/cerebras/SlimPajama-627B/train/chunk1/example_train_[0-9][0-9].jsonl.zst",
        "other",
        "web pages, code, books, papers, encyclopedia, questions, without duplicates",
    ),
}

_OF_FAMILY = (
    ("mobilellm", "fineweb"),
    ("smollm", "smollm"),
    ("pythia", "pile"),
    ("gpt-neo", "pile"),
    ("tinyllama", "slimpajama"),
    ("olmo", "dclm"),
    ("qwen", "fineweb"),
    ("gemma", "fineweb"),
    ("llama", "fineweb"),
)
"""Parts of a base's name, in this order, and the proxy that is most like what it was trained on, as far as is known."""


def find_proxy(path: str) -> Proxy | None:
    """Return the proxy that a source's path names, None for any other path; raises ValueError when it is unknown."""
    if not path.startswith(PREFIX):
        return None
    name = path.removeprefix(PREFIX)
    if name not in PROXIES:
        close = nearest(name, list(PROXIES))
        hint = f"did you mean {PREFIX}{close}?" if close else f"there are: {', '.join(PROXIES)}"
        raise ValueError(f"there is no proxy `{name}`; {hint}")
    return PROXIES[name]


def proxy_for(base: str) -> str | None:
    """Return the name of the proxy that suits a base, by the last part of the base's name; None for an unknown one."""
    name = base.rstrip("/").rpartition("/")[2].lower()
    return next((proxy for part, proxy in _OF_FAMILY if part in name), None)
