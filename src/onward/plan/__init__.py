"""What a run will need, computed before it is spent, and refused when it cannot work."""

from onward.plan.budget import Plan, check_domain, check_model, plan_run, sampled_tokens, wanted_tokens
from onward.plan.estimate import foresee
from onward.plan.foresight import Foresight

__all__ = [
    "Foresight",
    "Plan",
    "check_domain",
    "check_model",
    "foresee",
    "plan_run",
    "sampled_tokens",
    "wanted_tokens",
]
