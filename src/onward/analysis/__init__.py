"""From scores and metrics to findings: what changed, how surely, and in which words."""

from onward.analysis.comparison import compare, compare_all
from onward.analysis.difference import Comparison, Comparisons, Difference, Letters, Verdict
from onward.analysis.loss_curve import LossCurve, loss_curve
from onward.analysis.paired import scored_precision
from onward.analysis.pooling import pooled, require_seeds
from onward.analysis.wording import headline, sentence

__all__ = [
    "Comparison",
    "Comparisons",
    "Difference",
    "Letters",
    "LossCurve",
    "Verdict",
    "compare",
    "compare_all",
    "headline",
    "loss_curve",
    "pooled",
    "require_seeds",
    "scored_precision",
    "sentence",
]
