"""Tensors of any number of ranks as files in a store, by torch.distributed.checkpoint: planned and resharded by it.

Each rank writes the pieces it holds as safetensors files; where each piece lies is in an Index. PyTorch's own storage
pickles that. What the tensors are of, and when they count as written, is in checkpoint.py.
"""

import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import DefaultLoadPlanner, DefaultSavePlanner, StorageReader, StorageWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import create_default_local_save_plan
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.storage import WriteResult
from torch.distributed.tensor import DTensor
from torch.futures import Future

from igpt_model.runs.tensor_files import Index, Piece, StoredTensor, box_of, mark_of, piece_name
from pipeline.store import objects

_WEIGHTS = ("weights.", "trained.")  # in files of their own, for who reads the model alone
_MOST_WRITERS = 16  # of what all ranks have alike: a thousand small files would each be read by a thousand ranks


def shares(sizes: Mapping[str, int], parts: int) -> dict[str, int]:
    """Which of `parts` ranks writes each tensor that all of them hold: largest first, to who has least so far."""
    loads = [0] * parts
    owners = {}
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        owner = loads.index(min(loads))
        owners[name] = owner
        loads[owner] += sizes[name]
    return owners


class Staged(DefaultSavePlanner):
    """Copies in CPU memory of the pieces that this rank writes: training may go on while they are written.

    Of a tensor that is the same on all ranks one rank takes a copy, of a sharded one each rank of its shard.
    """

    def __init__(self, tensors: Mapping[str, Tensor], rank: int, world_size: int) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        whole = {name: tensor.nbytes for name, tensor in tensors.items() if not isinstance(tensor, DTensor)}
        owners = shares(whole, min(world_size, _MOST_WRITERS))
        ours = {name: tensor for name, tensor in tensors.items() if owners.get(name, rank) == rank}
        self._plan = create_default_local_save_plan(ours, is_coordinator=rank == 0)
        self._copies = {item.index: _local(ours[item.index.fqn]) for item in self._plan.items}

    def set_up_planner(self, state_dict: Any, storage_meta: Any = None, is_coordinator: bool = False) -> None:
        """Nothing is left to set up: the plan is that of the tensors as they were."""
        self.is_coordinator = is_coordinator

    def create_local_plan(self) -> SavePlan:
        """The pieces of this rank."""
        self.plan = self._plan
        return self.plan

    def resolve_data(self, write_item: WriteItem) -> Tensor:
        """The copy of a piece."""
        return self._copies[write_item.index]


def _local(tensor: Tensor) -> Tensor:
    here = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return here.detach().to("cpu", copy=True).contiguous()


def write(
    url: str,
    staged: Staged,
    rank: int,
    group: dist.ProcessGroup | None,
    *,
    seconds: float,
    commit: Callable[[Index], None],
) -> None:
    """Write what the ranks of a group have staged into a folder; `commit` is called on rank 0 when all files are there.

    Every rank raises what any of them met: PermissionError, OSError or IgptError of the store after `seconds` of
    patience.
    """
    writer = _Writer(url, rank, seconds, commit)
    with _own_errors():
        dcp.save({}, storage_writer=writer, planner=staged, process_group=group, no_dist=group is None)


def read(tensors: Mapping[str, Tensor], index: Index, open_file: Callable[[str], Path]) -> None:
    """Fill tensors, sharded or not, from what was written by any number of ranks; needs no process group.

    `open_file` gives the local path of a verified file; each is asked for once. Raises what it raises.
    """
    with _own_errors(), torch.no_grad():
        target = {name: tensor.detach() for name, tensor in tensors.items()}
        planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
        dcp.load(target, storage_reader=_Reader(index, open_file), planner=planner, no_dist=True)


@contextmanager
def _own_errors() -> Iterator[None]:
    """Raise the first rank's own exception in place of DCP's, which is not even an Exception."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            yield
    except CheckpointException as error:
        cause, _ = error.failures[min(error.failures)]
        raise cause from None


def _name(index: MetadataIndex) -> str:
    return piece_name(index.fqn, index.offset or ())


class _Writer(StorageWriter):
    """One rank's side of a save."""

    def __init__(self, url: str, rank: int, seconds: float, commit: Callable[[Index], None]) -> None:
        self._url, self._rank, self._seconds, self._commit = url, rank, seconds, commit

    def reset(self, checkpoint_id: Any = None) -> None:
        """Each save has a writer of its own."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Folders of a store need not be made."""

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Put this rank's files, and see that they arrived."""
        by_file: dict[str, list[WriteItem]] = {}
        for item in plan.items:
            group = "weights" if item.index.fqn.startswith(_WEIGHTS) else "optimizer"
            by_file.setdefault(f"{group}-{self._rank:05d}.safetensors", []).append(item)
        results = []
        with tempfile.TemporaryDirectory(prefix="igpt-checkpoint-") as temporary:
            for name, items in by_file.items():
                path = Path(temporary) / name
                tensors = {_name(item.index): planner.resolve_data(item) for item in items}
                safetensors.torch.save_file(tensors, path)
                mark = mark_of(path)
                url = objects.join(self._url, name)
                objects.upload(path, url, seconds=self._seconds)
                path.unlink()
                arrived = objects.size(url)
                if arrived != mark.bytes:
                    raise OSError(f"{url}: {arrived} bytes arrived of {mark.bytes}")
                results += [
                    WriteResult(index=item.index, size_in_bytes=mark.bytes, storage_data=(name, mark)) for item in items
                ]
        future: Future[list[WriteResult]] = Future()
        future.set_result(results)
        return future

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Make the index of what all ranks have written."""
        places = {result.index: result.storage_data for written in results for result in written}
        tensors = {}
        for name, stored in metadata.state_dict_metadata.items():
            assert isinstance(stored, TensorStorageMetadata)
            pieces = (
                Piece(
                    file=places[MetadataIndex(name, chunk.offsets)][0],
                    offsets=tuple(chunk.offsets),
                    sizes=tuple(chunk.sizes),
                )
                for chunk in stored.chunks
            )
            dtype = str(stored.properties.dtype).removeprefix("torch.")
            tensors[name] = StoredTensor(dtype=dtype, shape=tuple(stored.size), pieces=tuple(pieces))
        self._commit(Index(files=dict(sorted(places.values())), tensors=tensors))

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return True


class _Reader(StorageReader):
    """One rank's side of a load: it reads the files that hold what it needs."""

    def __init__(self, index: Index, open_file: Callable[[str], Path]) -> None:
        self._index, self._open_file = index, open_file

    def reset(self, checkpoint_id: Any = None) -> None:
        """Each load has a reader of its own."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        tensors: dict[str, Any] = {
            name: TensorStorageMetadata(
                properties=TensorProperties(dtype=getattr(torch, tensor.dtype)),
                size=torch.Size(tensor.shape),
                chunks=[_chunk(piece) for piece in tensor.pieces],
            )
            for name, tensor in self._index.tensors.items()
        }
        return Metadata(state_dict_metadata=tensors)

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        self._places = {
            MetadataIndex(name, piece.offsets): piece.file
            for name, tensor in self._index.tensors.items()
            for piece in tensor.pieces
        }

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        by_file: dict[str, list[Any]] = {}
        for item in plan.items:
            by_file.setdefault(self._places[item.storage_index], []).append(item)
        for name, items in sorted(by_file.items()):
            with safetensors.safe_open(self._open_file(name), framework="pt") as file:
                for item in items:
                    key = _name(item.storage_index)
                    target = planner.resolve_tensor(item).detach()
                    if target.ndim:
                        box = box_of(item.storage_offsets, item.lengths)
                        target.copy_(file.get_slice(key)[box])
                    else:
                        target.copy_(file.get_tensor(key))
                    planner.commit_tensor(item, target)
        future: Future[None] = Future()
        future.set_result(None)
        return future

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return True


def _chunk(piece: Piece) -> ChunkStorageMetadata:
    return ChunkStorageMetadata(offsets=torch.Size(piece.offsets), sizes=torch.Size(piece.sizes))
