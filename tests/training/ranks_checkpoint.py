"""Run by torchrun, for `test_checkpoint`: two ranks write checkpoints, or read what one process has written."""

import errno
import json
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from onward.errors import UserError
from onward.training.checkpoint import Checkpoints, Snapshot
from onward.training.ranks import Ranks, joined, leave

SHAPES = {"odd.weight": (7, 3), "odd.bias": (7,), "one.weight": (1, 5), "even.weight": (4, 2)}
"""Of these, two are not dealt out evenly to two ranks, and one leaves the second rank with nothing."""
KINDS = ("weights", "exp_avg", "exp_avg_sq")


def expected(kind: str, name: str) -> torch.Tensor:
    """Values that no other tensor has."""
    shape = SHAPES[name]
    first = 1000 * (1 + len(SHAPES) * KINDS.index(kind) + list(SHAPES).index(name))
    return torch.arange(first, first + torch.Size(shape).numel(), dtype=torch.float32).reshape(shape)


def plain(filled: bool) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint as one process, or each rank of DDP, has them."""
    return {f"{kind}.{name}": expected(kind, name) * float(filled) for kind in KINDS for name in SHAPES}


def sharded(filled: bool) -> dict[str, torch.Tensor]:
    """The same as FSDP2 has them."""
    parts = {"odd": torch.nn.Linear(3, 7), "one": torch.nn.Linear(5, 1, bias=False)}
    model = torch.nn.Sequential(OrderedDict(parts | {"even": torch.nn.Linear(2, 4, bias=False)}))
    fully_shard(model, mesh=DeviceMesh("cpu", list(range(torch.distributed.get_world_size()))))
    found = {}
    for name, parameter in model.named_parameters():
        assert isinstance(parameter, DTensor)
        for kind in KINDS:
            tensor = torch.zeros_like(parameter.detach())
            if filled:
                tensor = distribute_tensor(expected(kind, name), parameter.device_mesh, parameter.placements)
            found[f"{kind}.{name}"] = tensor
    return found


def is_as_expected(tensors: dict[str, torch.Tensor]) -> bool:
    """Whether all tensors, whole or in shards, hold what they should."""
    values = {name: t.full_tensor() if isinstance(t, DTensor) else t for name, t in tensors.items()}
    return all(torch.equal(value, expected(*name.split(".", 1))) for name, value in values.items())  # type: ignore[arg-type]


def open_checkpoints(folder: Path, ranks: Ranks, background: bool, keep: int = 9) -> Checkpoints:
    """The checkpoints of a run that has no other inputs than its step."""
    return Checkpoints(folder, lambda step: {"step": step}, ranks, keep, background)


def snapshot(step: int) -> Snapshot:
    """Where a run stands after so many steps."""
    return Snapshot(step, step * 100, step - 1, {"ranks": 2, "limit": 1.5})


def write(folder: Path, ranks: Ranks) -> None:
    """Save three times: sharded and plain in the background, sharded while the run waits."""
    behind, waiting = open_checkpoints(folder, ranks, True), open_checkpoints(folder, ranks, False)
    behind.save("step-00000001", snapshot(1), sharded(True))
    behind.save("step-00000002", snapshot(2), plain(True))
    behind.wait()
    waiting.save("step-00000003", snapshot(3), sharded(True))


def what_is_met(checkpoints: Checkpoints) -> str | None:
    """Wait for a save and return what a user is told of it."""
    try:
        checkpoints.wait()
    except UserError as error:
        return error.what
    return None


def read(folder: Path, ranks: Ranks) -> dict[str, Any]:
    """Restore what one process wrote, past a damaged one, sharded and plain; then fail to save on either rank."""
    said: list[str] = []
    checkpoints = open_checkpoints(folder, ranks, True)
    as_shards, as_plain = sharded(False), plain(False)
    restored = checkpoints.restore(as_shards, 99, said.append)
    assert restored is not None
    assert checkpoints.restore(as_plain, 99, lambda _: None) == restored
    right = [is_as_expected(as_shards), is_as_expected(as_plain)]

    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    as_ever = FileSystem.create_stream
    if ranks.place.rank == 1:
        FileSystem.create_stream = fail  # type: ignore[method-assign]
    checkpoints.save("step-00000008", snapshot(8), as_plain)
    met = [what_is_met(checkpoints)]
    FileSystem.create_stream = as_ever  # type: ignore[method-assign]

    def export(aside: Path) -> None:
        raise UserError("no tokenizer")

    checkpoints.save("tokens-000000800", snapshot(8), as_plain, export)
    met.append(what_is_met(checkpoints))
    checkpoints.save("step-00000009", snapshot(9), as_shards)
    checkpoints.wait()
    left = sorted(path.name for path in folder.iterdir())
    return {"step": restored.step, "right": right, "said": len(said), "met": met, "left": left}


def main() -> None:
    todo, folder = sys.argv[1], Path(sys.argv[2])
    torch.set_num_threads(1)
    with joined(needs_group=True) as ranks:
        if todo == "write":
            write(folder, ranks)
        else:
            found = ranks.gather(read(folder, ranks))
            if ranks.is_first:
                Path(sys.argv[3]).write_text(json.dumps(found))
    leave(0)


if __name__ == "__main__":
    main()
