"""A document that a model wrote, with what is known of it from its sampling."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Sampled:
    """number: which document of its seed, from 0. tokens: drawn for it, its end left out.

    is_ended: the model ended it; otherwise it was cut at its longest length. nats, entropy: sums over its tokens of the
    negative log-likelihood and of the entropy of the model's own next-token distribution (temperature 1, all tokens).
    """

    number: int
    text: str
    tokens: int
    is_ended: bool
    nats: float
    entropy: float
