"""Whether a recipe's training, killed and gone on with elsewhere, is the training that nobody interrupted."""

from onward.verification.outcome import Life, StepPair, Verification
from onward.verification.verify import parse_ranks, verify_resume

__all__ = ["Life", "StepPair", "Verification", "parse_ranks", "verify_resume"]
