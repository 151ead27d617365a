"""Self-generated replay: documents sampled from the base model, for bases whose training text is not public."""

from collections.abc import Callable, Iterator

from onward.corpus.documents import Document
from onward.model.tokenizer import LoadedTokenizer
from onward.recipe import SelfReplay

SOURCE = "self-replay"

Generate = Callable[[SelfReplay, int], Iterator[str]]
"""Samples texts from the base model by the section's settings and a seed, as many as it is asked for."""


def sampled_documents(
    section: SelfReplay, generate: Generate, tokenizer: LoadedTokenizer, seed: int
) -> Iterator[Document]:
    """Yield sampled texts as documents until they hold `section.tokens` tokens, or the sampler ends."""
    assert section.tokens is not None, "the pipeline gives an open budget its number"
    tokens = 0
    for number, text in enumerate(generate(section, seed), start=1):
        yield Document(f"self-{number:05d}", text, SOURCE)
        tokens += len(tokenizer.encode_batch([text])[0])
        if tokens >= section.tokens:
            return
