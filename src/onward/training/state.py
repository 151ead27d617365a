"""A rank's part of a run's tensors as safetensors files, written and read by torch.distributed.checkpoint.

Every rank writes what it holds, and reads what it needs from whichever files have it, so the files of any number of
ranks under any sharding open on any other. There is no pickle: each file says where its pieces lie in the whole.
"""

import itertools
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor

from onward.artifact import sync

_ALIGNMENT = 64
_FILE_BYTES = 1 << 26
"""What a rank writes into one file: the safetensors writer holds a file's content twice while it writes it."""


@dataclass(frozen=True)
class Piece:
    """A rank's part of a tensor: its values, and where in the whole of which shape they begin."""

    values: torch.Tensor
    offsets: tuple[int, ...]
    shape: tuple[int, ...]


def own_pieces(tensors: Mapping[str, torch.Tensor], rank: int, world: int) -> dict[str, Piece]:
    """Return what this rank is to write: its shards, and its part of the tensors that every rank holds whole.

    These are dealt out by size, the largest first to whoever has the least; each rank comes to the same answer.
    """
    copied = {name: _bytes(tensor) for name, tensor in tensors.items() if not _is_split(tensor)}
    dealt = [0] * world
    pieces = {}
    for name in sorted(copied, key=lambda name: (-copied[name], name)):
        owner = dealt.index(min(dealt))
        dealt[owner] += copied[name]
        if owner == rank:
            tensor = tensors[name]
            values = tensor.to_local() if isinstance(tensor, DTensor) else tensor
            pieces[name] = Piece(values.detach(), (0,) * values.ndim, tuple(values.shape))
    for name, tensor in tensors.items():
        if name not in copied:
            assert isinstance(tensor, DTensor)
            local = tensor.to_local().detach()
            if local.numel():  # a tensor of fewer rows than ranks leaves some with nothing
                [chunk] = tensor.__create_chunk_list__()  # type: ignore[no-untyped-call]
                pieces[name] = Piece(local, tuple(chunk.offsets), tuple(tensor.shape))
    return pieces


def total_bytes(tensors: Mapping[str, torch.Tensor]) -> int:
    """Return how much all ranks write together."""
    return sum(map(_bytes, tensors.values()))


def _bytes(tensor: torch.Tensor) -> int:
    return math.prod(tensor.shape) * tensor.element_size()


def _is_split(tensor: torch.Tensor) -> bool:
    return isinstance(tensor, DTensor) and not all(placement.is_replicate() for placement in tensor.placements)


def file_numbers(tensors: Mapping[str, torch.Tensor], world: int) -> dict[str, int]:
    """Return the number (from 1) of the file that each tensor goes to, alike on all ranks: a rank has one of each."""
    numbers, number, filled = {}, 1, 0
    for name in sorted(tensors):
        size = _bytes(tensors[name]) // (world if _is_split(tensors[name]) else 1)
        if filled and filled + size > _FILE_BYTES:
            number, filled = number + 1, 0
        numbers[name] = number
        filled += size
    return numbers


def copies(pieces: Mapping[str, Piece]) -> dict[str, Piece]:
    """Return pieces that the next update does not touch: on the CPU, in pinned memory where they come from a GPU.

    The copies from a GPU are made by its current stream; what it is told to do after this call waits for them. Those
    from the CPU lie in one block, which goes back to the system as a whole: hundreds of small ones stay with glibc.
    """
    sizes = [-(-_bytes(piece.values) // _ALIGNMENT) * _ALIGNMENT for piece in pieces.values()]
    ends = list(itertools.accumulate(sizes))
    on_cpu = all(piece.values.device.type == "cpu" for piece in pieces.values())
    block = np.empty(sum(sizes) if on_cpu else 0, np.uint8)  # in huge pages, which PyTorch's would not be
    copied = {}
    for (name, piece), size, end in zip(pieces.items(), sizes, ends, strict=True):
        values = piece.values
        if on_cpu:
            place = torch.from_numpy(block[end - size : end][: _bytes(values)])
            held = place.view(values.dtype).view(values.shape).copy_(values)
        else:  # PyTorch keeps pinned memory for the next time
            held = torch.empty(values.shape, dtype=values.dtype, pin_memory=values.is_cuda)
            held.copy_(values, non_blocking=True)
        copied[name] = Piece(held, piece.offsets, piece.shape)
    return copied


class _Planner(DefaultSavePlanner):
    """Plans the writing of pieces, which need neither a device mesh nor the device that they come from."""

    def __init__(self, pieces: Mapping[str, Piece]) -> None:
        super().__init__(flatten_state_dict=False)
        self._pieces = pieces

    def create_local_plan(self) -> SavePlan:
        self.plan = SavePlan([_write_item(name, piece) for name, piece in self._pieces.items()])
        return self.plan

    def resolve_data(self, write_item: WriteItem) -> torch.Tensor:
        return self._pieces[write_item.index.fqn].values.contiguous().cpu()


def _write_item(name: str, piece: Piece) -> WriteItem:
    offsets = torch.Size(piece.offsets)
    data = TensorWriteData(
        chunk=ChunkStorageMetadata(offsets, piece.values.size()),
        properties=TensorProperties(dtype=piece.values.dtype),
        size=torch.Size(piece.shape),
    )
    return WriteItem(MetadataIndex(name, offsets), WriteItemType.SHARD, tensor_data=data)


def write_pieces(
    folder: Path, pieces: Mapping[str, Piece], numbers: Mapping[str, int], rank: int, group: Any
) -> dict[str, int]:
    """Write this rank's pieces and see them to the disk; return the sizes of its files by name.

    Collective over `group`, a process group on the CPU; None for one process alone. Every rank raises what the first
    failing one met.
    """
    writer = HuggingFaceStorageWriter(str(folder), dict(numbers), save_distributed=True)
    state = {name: piece.values for name, piece in pieces.items()}
    with _first_failure():
        save(state, storage_writer=writer, planner=_Planner(pieces), process_group=group, no_dist=group is None)
    files = sorted(folder.glob(f"shard-{rank + 1:05d}-*.safetensors"))
    assert bool(files) == bool(pieces), f"torch names the files of a rank otherwise: {list(folder.iterdir())}"
    for file in files:  # once more: the writer syncs before Python's last buffer has left the process
        sync(file)
    return {file.name: file.stat().st_size for file in files}


def missing_files(folder: Path, written: Iterable[Mapping[str, int]]) -> list[str]:
    """Return the files that ranks have written and that this one does not see whole in `folder`."""
    seen = {file.name: file.stat().st_size for file in folder.iterdir()}
    return [name for sizes in written for name, size in sizes.items() if seen.get(name) != size]


def stored_names(folder: Path) -> set[str]:
    """Return the names of the tensors that a state holds."""
    return set(HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata)


def read_pieces(folder: Path, tensors: Mapping[str, torch.Tensor], group: Any) -> None:
    """Fill `tensors`, plain or sharded, in place. Collective, and raising, as `write_pieces`."""
    reader = HuggingFaceStorageReader(str(folder))
    with _first_failure():
        load(dict(tensors), storage_reader=reader, process_group=group, no_dist=group is None)


@contextmanager
def _first_failure() -> Iterator[None]:
    """Raise what a rank met instead of torch's BaseException around it; allow a process to be alone."""
    warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
    try:
        yield
    except CheckpointException as error:
        met: BaseException = error.failures[min(error.failures)][0]
        raise met from error
