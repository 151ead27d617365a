"""What kind of remedy a member is, from what its `training.forgetting` holds."""

from onward.recipe import Forgetting, format_share
from onward.recipe.forgetting import GENERAL, SELF

NONE, REPLAY = "none", "replay"
"""Kinds of the member without a remedy, and of those with replay of general text alone, which others stand beside."""


def kind_of(forgetting: Forgetting) -> str:
    """Return the kind of a remedy: `none`, `replay`, `self replay`, `EWC and replay`; a strength of 0 is no remedy."""
    freeze = forgetting.freeze
    used = {
        "EWC": forgetting.weighed is not None,
        "L2-SP": bool(forgetting.l2_sp),
        "KL": bool(forgetting.kl),
        "freezing": freeze is not None and (freeze.embeddings or freeze.blocks != 0),
        "LoRA": forgetting.lora is not None,
    }
    kinds = [kind for kind, is_used in used.items() if is_used]
    return joined([*kinds, *map(_replay, forgetting.replayed)]) or NONE


def named_words(name: str, forgetting: Forgetting) -> str:
    """Return the words of a member that the recipe names, with what it replays: `ewc5 (replay 5 %)`."""
    shares = [f"{_replay(corpus)} {format_share(share).removesuffix('%')} %"
              for corpus, share in forgetting.replayed.items()]  # fmt: skip
    return f"{name} ({joined(shares)})" if shares else name


def joined(words: list[str]) -> str:
    """Join words: `a, b and c`."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def _replay(corpus: str) -> str:
    return {GENERAL: REPLAY, SELF: "self replay"}.get(corpus, f"replay of {corpus}")
