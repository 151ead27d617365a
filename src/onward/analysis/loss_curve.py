"""The training loss as a reader can see it: few points, and a smooth line through them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_POINTS = 300
_BANDWIDTH = 0.02  # of the run, the standard deviation of the kernel
_LEAST_POINTS = 2  # which it spans at least: a short run is smoothed too


@dataclass(frozen=True)
class LossCurve:
    """A training curve of at most a few hundred points, over the tokens trained on.

    All arrays: float64 [points]. loss: mean nats per labelled token of the steps of a point. smooth: the same,
    smoothed. learning_rate: of the point's last step. skipped: steps without a finite loss (they are not drawn).
    """

    tokens: NDArray[np.float64]
    loss: NDArray[np.float64]
    smooth: NDArray[np.float64]
    learning_rate: NDArray[np.float64]
    skipped: int


def loss_curve(metrics: Sequence[Mapping[str, Any]]) -> LossCurve | None:
    """Reduce the rows of metrics.jsonl to a curve; None when no step has a finite loss.

    The smooth line is a Gaussian kernel mean over tokens, weighted by labelled tokens and renormalised at the edges
    (Nadaraya-Watson), so it lags nowhere, unlike an exponential average.
    """
    rows = [row for row in metrics if row.get("loss_nats") is not None and np.isfinite(row["loss_nats"])]
    if not rows:
        return None
    tokens, loss, rate, weight = (
        np.array([row[key] for row in rows], dtype=np.float64)
        for key in ("tokens", "loss_nats", "learning_rate", "labelled_tokens")
    )
    starts = np.unique(np.linspace(0, len(rows), min(_POINTS, len(rows)), endpoint=False).astype(int))
    last = np.append(starts[1:], len(rows)) - 1
    weights = np.add.reduceat(weight, starts)
    means = np.add.reduceat(loss * weight, starts) / weights
    middle = np.add.reduceat(tokens * weight, starts) / weights
    smooth = _smoothed(middle, means, weights)
    return LossCurve(middle, means, smooth, rate[last], len(metrics) - len(rows))


def _smoothed(
    tokens: NDArray[np.float64], loss: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    apart = float(np.median(np.diff(tokens))) if len(tokens) > 1 else 0.0
    width = max(_BANDWIDTH * (tokens[-1] - tokens[0]), _LEAST_POINTS * apart, np.finfo(np.float64).tiny)
    kernel = np.exp(-0.5 * ((tokens[:, None] - tokens[None, :]) / width) ** 2) * weights
    smooth: NDArray[np.float64] = kernel @ loss / kernel.sum(axis=1)
    return smooth
