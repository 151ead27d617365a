"""What is verified before the first update of a run: wrong data or a wrong loss shows here, not after a day."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from onward.batches import NO_TARGET, Batch
from onward.errors import UserError
from onward.model.tokenizer import LoadedTokenizer
from onward.training.network import ATTENTION, Network

_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
"""Relative difference of the losses; bf16 keeps 8 bits, fp32 kernels differ in the order of sums."""


@dataclass(frozen=True)
class StartChecks:
    """Findings of the start-of-run checks; they raise when they fail, so these are the figures behind a pass.

    packed_loss_nats and base_loss_nats: mean loss of the same tokens through the training step, and through the
    base model's own forward pass on each document alone in fp32. isolation_difference: largest change of other
    documents' hidden states, relative to their size, when the first document is replaced; None without others.
    """

    packed_loss_nats: float
    base_loss_nats: float
    isolation_difference: float | None
    documents_ended: int
    labelled_tokens: int


def check_start(network: Network, batch: Batch, tokenizer: LoadedTokenizer, precision: torch.dtype) -> StartChecks:
    """Check the first rows of the first batch against the base model; raises UserError when a check fails."""
    ended = _check_tokens(batch, tokenizer)
    with torch.no_grad():
        packed = float(network.summed_loss(batch)) / batch.labelled_tokens
        difference = _isolation(network, batch, tokenizer.vocabulary_size)
        base = _loss_of_documents(network.model, batch)
    if not abs(packed - base) <= _TOLERANCE[precision] * base:
        got, expected = f"{packed:.5f} nats per token", f"{base:.5f}, the base model's own loss on the same documents"
        raise UserError("the loss before the first update is not the base model's", "start-of-run check", got, expected)
    if difference is not None and difference > _TOLERANCE[precision]:
        got = f"hidden states moved by {difference:.2e} of their size"
        raise UserError("documents in one sequence see each other", "start-of-run check", got, "no change")
    return StartChecks(packed, base, difference, ended, batch.labelled_tokens)


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


def _isolation(network: Network, batch: Batch, vocabulary_size: int) -> float | None:
    """Replace the very first document by other tokens; return how far all others, in every row, moved.

    None when the rows hold no other document.
    """
    changed_BT = np.zeros_like(batch.documents_BT, dtype=bool)
    changed_BT[0] = batch.documents_BT[0] == 0
    changed = replace(batch, ids_BT=np.where(changed_BT, (batch.ids_BT + 1) % vocabulary_size, batch.ids_BT))
    others = torch.from_numpy((batch.documents_BT >= 0) & ~changed_BT).view(-1).to(network.device)
    if not others.any():
        return None
    before, after = (network.hidden(b)[others].float() for b in (batch, changed))
    return float((before - after).abs().max() / before.abs().max())


def _loss_of_documents(model: Any, batch: Batch) -> float:
    """Mean loss over the same targets by the model's own forward pass in fp32, one document piece at a time."""
    model.set_attn_implementation("sdpa")
    total, count = 0.0, 0
    device = next(model.parameters()).device
    try:
        for row in range(len(batch.ids_BT)):
            for piece in range(batch.documents_BT[row].max() + 1):
                inside = batch.documents_BT[row] == piece
                ids, labels = (torch.from_numpy(x[row][inside]).to(device) for x in (batch.ids_BT, batch.labels_BT))
                logits = model(input_ids=ids[None], use_cache=False).logits[0].float()
                total += float(F.cross_entropy(logits, labels, ignore_index=NO_TARGET, reduction="sum"))
                count += int((labels != NO_TARGET).sum())
    finally:
        model.set_attn_implementation(ATTENTION)
    return total / count
