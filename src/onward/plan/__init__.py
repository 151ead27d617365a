"""What a run will need, computed before it is spent, and refused when it cannot work."""

from onward.plan.budget import Plan, check_domain, check_model, check_trainable, plan_run, sampled_tokens, wanted_tokens
from onward.plan.estimate import foresee
from onward.plan.foresight import Foresight

__all__ = [
    "Foresight",
    "Plan",
    "check_domain",
    "check_model",
    "check_trainable",
    "foresee",
    "plan_run",
    "sampled_tokens",
    "wanted_tokens",
]
