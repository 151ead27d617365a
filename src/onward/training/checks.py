"""What is verified before the first update of a run: wrong data or a wrong loss shows here, not after a day."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from onward.batches import NO_TARGET, Batch
from onward.errors import UserError
from onward.model.tokenizer import LoadedTokenizer
from onward.training.learner import Learner
from onward.training.network import Rows

_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
"""Relative difference of the losses; bf16 keeps 8 bits, fp32 kernels differ in the order of sums."""


@dataclass(frozen=True)
class StartChecks:
    """Findings of the start-of-run checks; they raise when they fail, so these are the figures behind a pass.

    packed_loss_nats and base_loss_nats: mean loss of the same tokens through the training step, and through the
    base model's own forward pass on each document alone in fp32. isolation_difference: largest change of other
    documents' hidden states, relative to their size, when every second one is replaced; None without others.
    """

    packed_loss_nats: float
    base_loss_nats: float
    isolation_difference: float | None
    documents_ended: int
    labelled_tokens: int


def check_start(
    learner: Learner, base_loss_nats: float, batch: Batch, tokenizer: LoadedTokenizer, precision: torch.dtype
) -> StartChecks:
    """Check some rows of the first batch against the base model; raises UserError when a check fails.

    base_loss_nats: `loss_of_documents` of the same rows, taken before the model was prepared for training. Every rank
    checks the same rows.
    """
    ended = _check_tokens(batch, tokenizer)
    packed = float(learner.evaluate(Rows.of(batch))) / batch.labelled_tokens
    difference = _isolation(learner, batch, tokenizer.vocabulary_size)
    if not abs(packed - base_loss_nats) <= _TOLERANCE[precision] * base_loss_nats:
        got = f"{packed:.5f} nats per token"
        expected = f"{base_loss_nats:.5f}, the base model's own loss on the same documents"
        raise UserError("the loss before the first update is not the base model's", "start-of-run check", got, expected)
    if difference is not None and difference > _TOLERANCE[precision]:
        got = f"hidden states moved by {difference:.2e} of their size"
        raise UserError("documents in one sequence see each other", "start-of-run check", got, "no change")
    return StartChecks(packed, base_loss_nats, difference, ended, batch.labelled_tokens)


def _check_tokens(batch: Batch, tokenizer: LoadedTokenizer) -> int:
    """Positions without a target hold EOS, BOS stands at starts only; returns the number of document ends."""
    at_end = batch.ids_BT == tokenizer.eos_id
    ends = (batch.labels_BT == tokenizer.eos_id).sum()
    last = (batch.labels_BT == NO_TARGET) & (batch.documents_BT >= 0)
    if not at_end[last].all():
        raise UserError(
            "a document ends without the end-of-text token", "start-of-run check", todo="prepare the corpus anew"
        )
    if tokenizer.bos_id is not None and tokenizer.bos_id != tokenizer.eos_id:
        stray = (batch.ids_BT == tokenizer.bos_id) & (batch.positions_BT > 0) & (batch.documents_BT >= 0)
        if stray.any():
            raise UserError("a beginning-of-text token stands inside a document", "start-of-run check")
    return int(ends)


def _isolation(learner: Learner, batch: Batch, vocabulary_size: int) -> float | None:
    """Replace every second document by other tokens; return how far the others, in every row, moved.

    None when the rows hold one document alone.
    """
    begins_BT = np.diff(batch.documents_BT, axis=1, prepend=-2) != 0
    is_document_BT = batch.documents_BT >= 0
    number_BT = (begins_BT & is_document_BT).cumsum().reshape(begins_BT.shape)
    changed_BT = is_document_BT & (number_BT % 2 == 1)
    changed = replace(batch, ids_BT=np.where(changed_BT, (batch.ids_BT + 1) % vocabulary_size, batch.ids_BT))
    others = torch.from_numpy(is_document_BT & ~changed_BT).view(-1)
    if not others.any():
        return None
    before, after = (learner.evaluate(Rows.of(b), hidden_only=True).cpu()[others].float() for b in (batch, changed))
    return float((before - after).abs().max() / before.abs().max())


@torch.no_grad()
def loss_of_documents(model: Any, batch: Batch) -> float:
    """Mean loss in nats over a batch's targets by the model's own forward pass in fp32, one document piece at a time.

    It knows nothing of packing: what the training step must reproduce before its first update.
    """
    total, count = 0.0, 0
    device = next(model.parameters()).device
    for row in range(len(batch.ids_BT)):
        for piece in range(batch.documents_BT[row].max() + 1):
            inside = batch.documents_BT[row] == piece
            ids, labels = (torch.from_numpy(x[row][inside]).to(device) for x in (batch.ids_BT, batch.labels_BT))
            logits = model(input_ids=ids[None], use_cache=False).logits[0].float()
            total += float(F.cross_entropy(logits, labels, ignore_index=NO_TARGET, reduction="sum"))
            count += int((labels != NO_TARGET).sum())
    return total / count
