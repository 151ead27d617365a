"""Whether a recipe's training, killed and gone on with elsewhere, is the training that nobody interrupted."""

from onward.verification.outcome import Life, StepPair, Verification
from onward.verification.verify import verify_resume

__all__ = ["Life", "StepPair", "Verification", "verify_resume"]
