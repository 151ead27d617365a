"""From scores and metrics to findings: what changed, how surely, and in which words."""

from onward.analysis.comparison import compare
from onward.analysis.difference import Comparison, Difference, Verdict
from onward.analysis.loss_curve import LossCurve, loss_curve
from onward.analysis.wording import headline, sentence

__all__ = ["Comparison", "Difference", "LossCurve", "Verdict", "compare", "headline", "loss_curve", "sentence"]
