"""The diagonal of the Fisher information at the base's weights: how much each weight matters for a text.

Per token it is the mean over the labelled tokens of (d log p(token) / d theta)^2; per sequence the mean over the
documents of (d sum of log p over the document's tokens / d theta)^2. With the text's own labels this is the empirical
Fisher information, and on text that the model has sampled the true one. Always in fp32. It is never the square of a
gradient that is a mean over a batch, which is smaller by about the batch's size.

exact: a backward pass for every token or document. signs: one for every packed row, of sum s_i loss_i with an
independent random sign s_i for every token or document: the square of its gradient is sum g_i^2 + sum s_i s_j g_i g_j
over i != j, whose second part has mean 0. The square is of one packed row always: micro-batches, which would put other
summands under one square, have no part in it.
"""

import gc
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import disk_usage
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.distributed.tensor import DTensor

from onward.artifact import Damage, building, find, fingerprint, locked, write_json
from onward.batches import NO_TARGET, Batch, Batches, BatchPlan
from onward.corpus.store import OpenCorpus, open_corpus
from onward.errors import RankError, UserError
from onward.model.load import load_model
from onward.model.shape import read_shape
from onward.model.source import ModelSource
from onward.progress import Progress, Silent
from onward.recipe import Ewc
from onward.training.anchor import local_part
from onward.training.fisher_facts import describe_fisher
from onward.training.fitting import amount
from onward.training.learner import is_out_of_memory
from onward.training.loss import summed_loss
from onward.training.network import Network, Rows
from onward.training.parallel import is_sharded, needs_group, share_out, summed, whole
from onward.training.ranks import Ranks
from onward.training.remedies import FISHER_BYTES
from onward.training.strategy import Strategy

FORMAT = 1
"""Raised when the same inputs come to give another result."""
_BYTES_A_WEIGHT = 16
"""Weights and gradients in fp32, and sums of squares in fp64."""
SEED = 0
"""Of the rows and signs: not training's, since the information is a property of base and text that trainings share."""
WEIGHTS, FACTS = "fisher.safetensors", "facts.json"
Positions = tuple[torch.Tensor, torch.Tensor]
"""int64 positions whose losses count with a plus, and those whose losses count with a minus."""


@dataclass(frozen=True)
class Estimate:
    """The Fisher information as this rank holds it, by parameter name: whole, or its shard of a DTensor; fp64.

    information: the mean, not normalised. tokens: labelled tokens it is over; sequences: their documents, of which the
    ends of rows may have cut some; rows: packed rows, of all ranks together.
    """

    information: dict[str, torch.Tensor]
    tokens: int
    sequences: int
    rows: int


class SignedNetwork(Network):
    """A network whose loss may count chosen positions only, each with a sign."""

    def forward(self, rows: Rows, hidden_only: bool = False, signed: Positions | None = None) -> torch.Tensor:
        """Return the signed sum of cross-entropies in nats, or what a network returns."""
        if signed is None:
            return super().forward(rows, hidden_only)
        return self.signed_loss(self.hidden(rows), rows.labels_N, signed)

    def signed_loss(self, hidden_ND: torch.Tensor, labels_N: torch.Tensor, signed: Positions) -> torch.Tensor:
        """Return the summed cross-entropy of the first positions less that of the second."""
        head, hidden_ND = self.model.get_output_embeddings(), self.scaled(hidden_ND)
        bias = getattr(head, "bias", None)
        total = torch.zeros((), device=hidden_ND.device)
        for sign, chosen in zip((1, -1), signed, strict=True):
            if len(chosen):
                hidden, labels = hidden_ND[chosen], labels_N[chosen]
                total = total + sign * summed_loss(hidden, head.weight, labels, self.loss_chunk, bias, self._softcap)
        return total


def fisher_place(
    base: ModelSource, text: Path, cache: Path, ewc: Ewc, seed: int = SEED
) -> tuple[Path, dict[str, str | int]]:
    """Return where the Fisher information of a base on a prepared corpus stands, there or not, and what names it."""
    made_from = {
        "format": FORMAT,
        "base": base.fingerprint,
        "text": text.name,
        "seed": seed,
        **ewc.model_dump(mode="json", include={"tokens", "per", "estimator"}),
    }
    return cache / "fisher" / fingerprint(made_from), made_from


def find_fisher(
    base: ModelSource,
    text: Path,
    cache: Path,
    ewc: Ewc,
    seed: int,
    strategy: Strategy,
    ranks: Ranks,
    progress: Progress | None = None,
) -> Path:
    """Return the artifact of the base's Fisher information on a prepared corpus, made now unless it is there.

    text: the corpus artifact; of its rows the first that hold about `ewc.tokens`, in the order that `seed` names.
    strategy: how the model is made to fit; it is loaded for this alone and let go again. Where another process is
    making the same, it is waited for. Collective. Raises UserError when the text holds no labelled token, the place
    holds what was made from something else, or the memory is too small.
    """
    progress = progress or Silent()
    folder, made_from = fisher_place(base, text, cache, ewc, seed)

    def tell(damage: Damage) -> None:
        progress.note(f"the Fisher information is damaged and made anew: {damage}")

    def wait() -> None:
        progress.note("another process estimates the Fisher information: waiting for it")

    if ranks.agree(find(folder, made_from, tell) is not None):
        return folder
    # Members of a study that start together want the same: one of them estimates, the others find it there.
    with locked(folder, wait) if ranks.is_first else nullcontext():
        if ranks.agree(ranks.is_first and find(folder, made_from, lambda _: None) is not None):
            return folder
        _require_room(folder.parent, base, ranks)
        try:
            tensors, facts = _estimated(base, text, ewc, seed, strategy, ranks, progress)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise _too_large(base, ewc, strategy, ranks, error) from error
        gc.collect()  # the model that was loaded for this, whose parts refer to each other
        if ranks.device.type == "cuda":
            torch.cuda.empty_cache()
        if ranks.is_first:
            from safetensors.torch import save_file

            with building(folder, "Fisher information", made_from, is_locked=True) as aside:
                save_file(tensors, aside / WEIGHTS)
                write_json(aside / FACTS, facts)
        ranks.barrier()
    return folder


def _require_room(place: Path, base: ModelSource, ranks: Ranks) -> None:
    """Raise UserError, on every rank, where the disk of the first has no room for what the estimate will write."""
    needed, free = FISHER_BYTES * read_shape(base).parameters, 0
    if ranks.is_first:
        place.mkdir(parents=True, exist_ok=True)
        free = disk_usage(place).free
    if ranks.agree(ranks.is_first and free < needed):
        todo = "free some space, or choose another place with --cache; finished work is kept"
        got, expected = f"{amount(free, 'down')} free", f"{amount(needed)} for the Fisher information"
        raise UserError("the disk is full", str(place), got, expected, todo)


def _too_large(base: ModelSource, ewc: Ewc, strategy: Strategy, ranks: Ranks, error: Exception) -> UserError:
    """Say how much memory estimating needs, of every weight, frozen or not, and what would need less."""
    by = ranks.world if needs_group(strategy) else 1
    needed = amount(_BYTES_A_WEIGHT * read_shape(base).parameters / by)
    less = ["set training.offload: true"] if ranks.device.type == "cuda" and not strategy.offload else []
    if ranks.world > 1 and by == 1:
        less.append("set training.sharding: zero3")
    if ewc.estimator == "exact":
        less.append("set training.forgetting.ewc.estimator: signs")
    elif strategy.checkpoint_every != 1:
        less.append("set training.gradient_checkpointing: all")
    less.append(
        "estimate on a machine with more memory, whose cache serves this one, or use l2_sp, which needs no estimate"
    )
    return (RankError if ranks.world > 1 else UserError)(
        "the memory is full: the Fisher information of this model needs more",
        f"training.forgetting.ewc, {ranks.device}",
        (str(error) or type(error).__name__).split("\n")[0][:200],
        f"about {needed} for {_BYTES_A_WEIGHT} bytes a weight, frozen or not, and the activations of a row",
        "; or ".join(less),
    )


def read_fisher(folder: Path) -> dict[str, torch.Tensor]:
    """Return the Fisher information of an artifact by parameter name: fp32, whole, mapped from the file."""
    from safetensors.torch import load_file

    return load_file(folder / WEIGHTS)


def estimate_fisher(
    network: SignedNetwork,
    corpus: OpenCorpus,
    ewc: Ewc,
    seed: int,
    ranks: Ranks,
    progress: Progress | None = None,
) -> Estimate:
    """Estimate the Fisher information of a network, whole or sharded, on the first rows of a corpus; collective.

    A corpus that is shorter than `ewc.tokens` is read once. Raises UserError when its rows hold no labelled token.
    """
    progress = progress or Silent()
    length = corpus.sequence_tokens
    wanted = min(-(-ewc.tokens // length), corpus.num_sequences)
    batches = Batches(BatchPlan(length, 1, (), seed, (wanted,)), [corpus], padding_id=0)
    # In fp64: the last of 200,000 summands in fp32 would lose most of their digits. With weights and gradients that is
    # 16 bytes a weight, as with two moments in training: a model that is trained fits.
    information = {
        name: torch.zeros_like(parameter, dtype=torch.float64) for name, parameter in network.model.named_parameters()
    }
    totals = [local_part(total) for total in information.values()]
    # A split model needs every rank for every pass. All are given the same row: the mean that is reduced is then that
    # row's gradient, and each squares its shard of it. Rows of their own would be averaged before they are squared.
    deal = 1 if is_sharded(network) else ranks.world
    counts = torch.zeros(2, dtype=torch.int64, device=ranks.device)
    progress.begin("estimating the Fisher information", wanted * length, "tokens")
    for row in range(ranks.place.rank % deal, wanted, deal):
        batch = batches[row]
        for gradients in _gradients(network, batch, ewc, (seed, row), ranks.device):
            for total, gradient in zip(totals, gradients, strict=True):
                if gradient is not None:
                    # Not in place: autograd may give two parameters the same tensor.
                    total.add_(local_part(gradient).square())
        counts += torch.tensor([batch.labelled_tokens, len(_documents(batch))]).to(ranks.device)
        progress.advance(min(wanted, row - row % deal + deal) * length)
    for total in (counts, *totals) if deal > 1 else ():
        summed(total, ranks)
    tokens, sequences = counts.tolist()
    if not tokens:
        todo = "choose another text: what follows a token is what is learned from"
        raise UserError("this text has no document of two tokens", "training.forgetting.ewc.text", ewc.text, todo=todo)
    for total in totals:
        total.div_(tokens if ewc.per == "token" else sequences)
    return Estimate(information, tokens, sequences, wanted)


def _estimated(
    base: ModelSource, text: Path, ewc: Ewc, seed: int, strategy: Strategy, ranks: Ranks, progress: Progress
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Load the base, estimate, and return what is written; tensors on the first rank alone."""
    # The shapes of documents differ from one to the next, and each would be compiled; one by one they keep little.
    recomputed = 0 if ewc.estimator == "exact" else strategy.checkpoint_every
    strategy = replace(strategy, compiled=False, checkpoint_every=recomputed)
    model = load_model(base, torch.float32, "cpu" if strategy.offload else str(ranks.device))
    network = SignedNetwork(model, torch.float32, strategy)
    if needs_group(strategy):  # DDP is not wanted: it would average gradients that are to be squared
        share_out(network, strategy, ranks)
    estimate = estimate_fisher(network, open_corpus(text), ewc, seed, ranks, progress)
    mean = _mean(list(estimate.information.values()), ranks)
    tensors = {}
    for name, information in estimate.information.items():
        full = whole((information / mean).float())
        if ranks.is_first:
            tensors[name] = full.cpu().contiguous()
    if not ranks.is_first:
        return {}, {}
    facts = {"tokens": estimate.tokens, "sequences": estimate.sequences, "rows": estimate.rows, "mean": mean}
    return tensors, facts | {"per": ewc.per, "estimator": ewc.estimator} | describe_fisher(model, tensors)


def _mean(tensors: list[torch.Tensor], ranks: Ranks) -> float:
    """Return the mean over all weights, those of all ranks together."""
    total = torch.stack([local_part(tensor).sum() for tensor in tensors]).sum().to(ranks.device)
    if any(isinstance(tensor, DTensor) for tensor in tensors):
        summed(total, ranks)
    mean = float(total) / sum(tensor.numel() for tensor in tensors)
    assert mean > 0, "some gradient is not 0"
    return mean


def _gradients(
    network: SignedNetwork, batch: Batch, ewc: Ewc, key: tuple[int, int], device: torch.device
) -> Iterator[list[torch.Tensor | None]]:
    """Yield, for one packed row, the gradients of all parameters whose squares are to be added up.

    key: seed and number of the row, which name the signs.
    """
    if ewc.estimator == "signs":
        if batch.labelled_tokens:
            yield _backward(network, Rows.of(batch).to(device), _signed(batch, ewc.per, key, device))
        return
    nothing = torch.zeros(0, dtype=torch.int64, device=device)
    # Documents are alone: nothing goes from one to another, and a pass over one is shorter than over its row.
    for start, stop in _documents(batch):
        document = _cut(batch, start, stop)
        rows = Rows.of(document).to(device)
        labelled = torch.from_numpy(np.flatnonzero(document.labels_BT[0] != NO_TARGET)).to(device)
        if ewc.per == "sequence":
            yield _backward(network, rows, (labelled, nothing))
        elif is_sharded(network):  # its weights go again after every backward pass
            for position in labelled[:, None]:
                yield _backward(network, rows, (position, nothing))
        else:
            # One forward pass for all tokens of a document. Several backward passes at once (is_grads_batched) took
            # 1.2 to 1.5 times as long on a CPU, and do not go through norms and MLPs that keep less.
            parameters = list(network.model.parameters())
            hidden = network.hidden(rows)
            for position in labelled[:, None]:
                loss = network.signed_loss(hidden, rows.labels_N, (position, nothing))
                yield list(torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True))


def _backward(network: SignedNetwork, rows: Rows, signed: Positions) -> list[torch.Tensor | None]:
    """Return the gradients of a signed loss, and leave none at the parameters."""
    network(rows, signed=signed).backward()
    gradients = [parameter.grad for parameter in network.model.parameters()]
    network.zero_grad(set_to_none=True)
    return gradients


def _signed(batch: Batch, per: str, key: tuple[int, int], device: torch.device) -> Positions:
    """Give each labelled token of a row, or each document, a sign: of (seed, number of the row) and nothing else."""
    bits_T = np.random.Philox(np.random.SeedSequence(key)).random_raw(batch.labels_BT.shape[1]) & np.uint64(1)
    plus_T: NDArray[np.bool_] = np.asarray(bits_T, dtype=np.bool_)
    if per == "sequence":
        for start, stop in _documents(batch):
            plus_T[start:stop] = plus_T[start]
    labelled_T = batch.labels_BT[0] != NO_TARGET
    plus, minus = (torch.from_numpy(np.flatnonzero(labelled_T & chosen)).to(device) for chosen in (plus_T, ~plus_T))
    return plus, minus


def _documents(batch: Batch) -> list[tuple[int, int]]:
    """Return where the documents of a row begin and end that have a labelled token."""
    documents_T, labelled_T = batch.documents_BT[0], batch.labels_BT[0] != NO_TARGET
    ends = [*(np.flatnonzero(np.diff(documents_T)) + 1).tolist(), len(documents_T)]
    starts = [0, *ends[:-1]]
    return [(start, stop) for start, stop in zip(starts, ends, strict=True) if labelled_T[start:stop].any()]


def _cut(batch: Batch, start: int, stop: int) -> Batch:
    """Return one document of a row as a batch of its own."""
    here = slice(start, stop)
    return replace(
        batch,
        ids_BT=batch.ids_BT[:, here],
        labels_BT=batch.labels_BT[:, here],
        documents_BT=batch.documents_BT[:, here],
        positions_BT=batch.positions_BT[:, here],
    )
