"""The model that learns on this rank: network, optimizer and their sharing, and the update of one step."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from onward.errors import UserError
from onward.model.load import load_model
from onward.model.source import ModelSource
from onward.recipe import Forgetting, Optimizer
from onward.training.adapters import adapters_of, base_name, is_adapter
from onward.training.anchor import Anchor
from onward.training.frozen import keep_in_compute_type, keep_parts
from onward.training.memory import MemoryMeter
from onward.training.network import Network, Rows
from onward.training.optimizer import build_optimizer, set_rate
from onward.training.parallel import (
    check_sharing,
    clip,
    is_sharded,
    needs_group,
    share_out,
    summed,
    whole,
    without_reduction,
)
from onward.training.ranks import Ranks
from onward.training.reference import Reference, frozen_copy
from onward.training.strategy import Strategy

_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Measured:
    """What a step measured, as scalars that are still on the device: reading one waits for it.

    loss_nats: mean cross-entropy over the labelled tokens of the global batch. gradient_norm: global, before clipping.
    left_out: 1 when the update was not made. kl_nats: mean of KL(base || model) over the labelled tokens of replayed
    rows, not a number where the step has none; None where it is not measured.
    """

    loss_nats: torch.Tensor
    gradient_norm: torch.Tensor
    left_out: torch.Tensor
    kl_nats: torch.Tensor | None = None


class Learner:
    """A base model under one strategy, with its optimizer; `update` is the training step.

    look_at_base is given the model as it was loaded, before it is prepared for training. forgetting: the remedies that
    are part of a step; fisher: what its `ewc` weighs with, whole tensors by parameter name. seed: of adapters. Raises
    UserError for a model that packed training does not reproduce, and for remedies that do not fit it.
    """

    def __init__(
        self,
        base: ModelSource,
        settings: Optimizer,
        strategy: Strategy,
        precision: torch.dtype,
        step_tokens: int,
        ranks: Ranks,
        look_at_base: Callable[[Any], None] | None = None,
        *,
        forgetting: Forgetting | None = None,
        fisher: Mapping[str, torch.Tensor] | None = None,
        seed: int = 0,
    ) -> None:
        self.strategy, self.ranks, self._settings, self._base = strategy, ranks, settings, base
        # An offloaded model stays in the machine's memory: FSDP2 brings each block to the GPU when it is due.
        home = torch.device("cpu") if strategy.offload else ranks.device
        model = load_model(base, torch.float32, str(home))
        if look_at_base is not None:
            look_at_base(model)
        self.network = Network(model, precision, strategy)
        adapter_ratio = 1.0
        if forgetting is not None:
            keep_parts(self.network, forgetting, seed)
            keep_in_compute_type(self.network, needs_group(strategy))
            adapter_ratio = forgetting.lora.learning_rate_ratio if forgetting.lora is not None else 1.0
        self._module = share_out(self.network, strategy, ranks)
        self.sharing = check_sharing(self._module, strategy, ranks)
        self.optimizer = build_optimizer(self.model, settings, step_tokens, adapter_ratio)
        self._parameters = [p for p in self.network.parameters() if p.requires_grad]
        self.anchor = None if forgetting is None else self._anchor(forgetting, fisher)
        self.reference: Reference | None = None
        if forgetting is not None and forgetting.kl:
            has_adapters = forgetting.lora is not None
            network = self.network if has_adapters else frozen_copy(base, precision, strategy, ranks)
            self.reference = Reference(network, forgetting.kl, strategy, ranks)
        self.updates = 0

    def _anchor(self, forgetting: Forgetting, fisher: Mapping[str, torch.Tensor] | None) -> Anchor | None:
        """Keep the base's weights where something is to pull towards them; a strength of 0 is off."""
        ewc = None if forgetting.ewc is None else forgetting.ewc.strength
        if not ewc and not forgetting.l2_sp:
            return None
        parameters = dict(self.model.named_parameters())
        if ewc:
            assert fisher is not None, "ewc has its Fisher information"
            check_fits(fisher, parameters)
        return Anchor(self.optimizer, parameters, self.ranks, l2_sp=forgetting.l2_sp, ewc=ewc, fisher=fisher)

    @property
    def exported_parameters(self) -> int:
        """How many weights `whole_weights` gives: those of adapters are merged."""
        return sum(p.numel() for name, p in self.model.named_parameters() if not is_adapter(name))

    @property
    def is_sharded(self) -> bool:
        """Whether FSDP2 splits or offloads the state; an interrupted pass leaves such a model half gathered."""
        return is_sharded(self._module)

    @property
    def model(self) -> Any:
        """The transformers model inside."""
        return self.network.model

    def update(
        self,
        micro: Sequence[Rows],
        labelled_tokens: int,
        rate: float,
        limit_nats: float = float("inf"),
        is_cancelled: Callable[[], bool] | None = None,
    ) -> Measured | None:
        """Make one optimizer update over the global batch, of which `micro` are this rank's micro-batches.

        The loss is the mean over `labelled_tokens` of all ranks. The update is left out, on the device and without
        waiting for it, when loss or gradient is not a number or the loss exceeds `limit_nats`. Returns None, nothing
        changed, when `is_cancelled` says so before the last micro-batch.
        """
        # Cross-entropy, divergence, and the positions that have one.
        sums = torch.zeros(3, dtype=torch.float64, device=self.ranks.device)
        takes_part = [False] * len(micro) if self.reference is None else self.reference.takes_part(micro)
        with self._clean_gradients(), self.network.compute_weights():
            for number, rows in enumerate(micro, start=1):
                if number > 1 and is_cancelled is not None and is_cancelled():
                    self.optimizer.zero_grad(set_to_none=True)
                    return None
                with without_reduction(self._module) if number < len(micro) else nullcontext():
                    part, found = self._forward(rows, takes_part[number - 1])
                    # DDP and FSDP2 average over the ranks; the sum is wanted.
                    (part * (self.ranks.world / labelled_tokens)).backward()  # type: ignore[no-untyped-call]
                sums += found
            # Offloaded gradients have theirs on the CPU.
            norm = clip(self._parameters, self._settings.clip_norm).to(self.ranks.device)
            total, divergence, places = summed(sums, self.ranks)
            loss = total / labelled_tokens
            bad = (~(torch.isfinite(norm) & torch.isfinite(loss)) | (loss > limit_nats)).float()
            self._apply(rate, bad)
        return Measured(loss, norm, bad, None if self.reference is None else divergence / places)

    def _forward(self, rows: Rows, asks_base: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a micro-batch's sum to be minimised, and its cross-entropy, divergence and positions of that: [3]."""
        sums = torch.zeros(3, dtype=torch.float64, device=self.ranks.device)
        if self.reference is None or not asks_base:
            part = self._module(rows)
            sums[0] = part.detach()
            return part, sums
        towards = self.reference.towards(rows)
        part = self._module(replace(rows, towards=towards))
        sums[:2] = part[1:].detach()
        sums[2] = len(towards.at_M)
        return part[0], sums

    @torch.no_grad()
    def evaluate(self, rows: Rows, hidden_only: bool = False) -> torch.Tensor:
        """Return the summed loss of some rows, or their hidden states, without learning from them.

        Collective: every rank gives rows of the same shape.
        """
        with self.network.compute_weights():
            result: torch.Tensor = self._module(rows.to(self.ranks.device), hidden_only)
        return result

    def probe(self, rows: Rows, passes: int = 2) -> int:
        """Return the peak of memory, in bytes, of a forward and backward pass; of two: with gradients of one before.

        Nothing is learned. Collective: every rank gives rows of the same shape.
        """
        meter = MemoryMeter(self.ranks.device)
        rows = rows.to(self.ranks.device)
        meter.reset()
        with self._clean_gradients(), self.network.compute_weights():
            for _ in range(passes):
                asks_base = self.reference is not None and self.reference.takes_part([rows])[0]
                part, _ = self._forward(rows, asks_base)
                (part / max(1, len(rows.ids_N))).backward()  # type: ignore[no-untyped-call]
        peak = meter.read().peak
        self.optimizer.zero_grad(set_to_none=True)
        return peak

    def _apply(self, rate: float, left_out: torch.Tensor) -> None:
        set_rate(self.optimizer, rate)
        # The fused kernel makes no update where found_inf is 1, as it does for PyTorch's gradient scaler.
        self.optimizer.grad_scale, self.optimizer.found_inf = None, left_out  # type: ignore[attr-defined]
        if self.strategy.offload:
            self.optimizer.found_inf = left_out.cpu()  # type: ignore[attr-defined]
        self.optimizer.step()
        if self.anchor is not None:
            self.anchor.pull(left_out)
        self.optimizer.zero_grad(set_to_none=True)

    @contextmanager
    def _clean_gradients(self) -> Iterator[None]:
        """Drop what a failed step (out of memory, say) has left, so that it can be made again."""
        try:
            yield
        except BaseException:
            self.optimizer.zero_grad(set_to_none=True)
            raise

    def use(self, strategy: Strategy) -> None:
        """Go on with smaller pieces: a strategy that differs in micro-batch or loss chunk alone."""
        self.strategy = strategy
        self.network.loss_chunk = strategy.loss_chunk

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return this rank's part of what a checkpoint holds: weights and both moments by name, tied ones once.

        What is not trained is the base's, and not among them.
        """
        found: dict[str, torch.Tensor] = {}
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                found[f"weights.{name}"] = parameter.detach()
                for moment in _MOMENTS:
                    found[f"{moment}.{name}"] = self.optimizer.state[parameter][moment]
        return found

    def set_updates(self, updates: int) -> None:
        """Tell the optimizer how many updates the loaded moments stand for."""
        self.updates = updates
        for state in self.optimizer.state.values():
            state["step"].fill_(updates)

    @torch.no_grad()
    def take(self, tensors: Mapping[str, torch.Tensor], updates: int) -> None:
        """Take over what `tensors` gave on one process, under whatever strategy."""
        for name, tensor in self.tensors().items():
            own = tensor.to_local() if isinstance(tensor, DTensor) else tensor
            given = tensors[name]
            own.copy_(given.to_local() if isinstance(given, DTensor) else given)
        self.set_updates(updates)

    def whole_weights(self, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """Return all weights on the CPU of the first rank, empty elsewhere; collective where they are sharded.

        They have the base's names: adapters are merged. What is frozen is the base's own, to the bit, also where it is
        computed with in another type.
        """
        weights: dict[str, torch.Tensor] = {}
        adapters: dict[str, torch.Tensor] = {}
        frozen = []
        for name, parameter in self.model.named_parameters():
            if not parameter.requires_grad:
                frozen.append(base_name(name))
                continue
            tensor = whole(parameter.detach())
            if self.ranks.is_first and is_adapter(name):
                adapters[name] = tensor.to(device="cpu", dtype=torch.float32, copy=True)
            elif self.ranks.is_first:
                weights[name] = tensor.to(device="cpu", dtype=dtype, copy=True)
        if frozen and self.ranks.is_first:
            base = dict(load_model(self._base, torch.float32).named_parameters())
            weights |= {name: base[name].detach() for name in frozen}
            for adapter in adapters_of(self.model):
                weights[adapter.matrix] = adapter.merged(weights[adapter.matrix], adapters)
            weights |= {name: weights[name].to(dtype) for name in frozen}
        return weights


def check_fits(fisher: Mapping[str, torch.Tensor], parameters: Mapping[str, torch.Tensor]) -> None:
    """Raise UserError when Fisher information is that of a model of other shapes."""
    for name, parameter in parameters.items():
        got = "nothing" if name not in fisher else str(tuple(fisher[name].shape))
        if got != str(tuple(parameter.shape)):
            todo = "remove the folder `fisher` of the cache, or take the base that it was made from"
            raise UserError(
                "the Fisher information is that of another model",
                "training.forgetting.ewc",
                f"{got} for {name}",
                str(tuple(parameter.shape)),
                todo,
            )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: a GPU's, the CPU allocator's, or Python's."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    words = ("can't allocate memory", "not enough memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "cuda calloc")
    if isinstance(error, RuntimeError) and any(word.lower() in str(error).lower() for word in words):
        return True
    return error.__cause__ is not None and is_out_of_memory(error.__cause__)  # a compiler wraps it
