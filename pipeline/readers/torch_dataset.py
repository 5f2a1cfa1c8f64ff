"""A snapshot as a dataset of PyTorch, which several ranks and workers share and which goes on in the middle.

    dataset = TorchDataset("s3://datasets/photos", split="train", pixels="rgb", shuffle=True, batch_size=64)
    for batch in DataLoader(dataset, batch_size=64, num_workers=3): ...

Shards are fetched into a folder on this node, verified and memory-mapped (pipeline.samples.shard_cache).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import distributed
from torch.utils.data import IterableDataset, get_worker_info

from pipeline.dataset.snapshot import ShardEntry
from pipeline.errors import IgptError
from pipeline.readers.selection import Selection, image_of, select
from pipeline.readers.shares import Share
from pipeline.samples.order import SampleOrder
from pipeline.samples.shard_cache import ShardCache, gather
from pipeline.samples.window_reader import WindowReader, check_room

_BATCH = 64  # without a batch size, workers take turns in this many samples
_MOST_WORKERS = 1024


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A sample as it is in a shard, with its pixels as asked for."""

    pixels: np.ndarray
    """Tokens uint16 [H, W], or RGB uint8 [H, W, 3]."""
    label: int
    key: str
    shard: ShardEntry


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where a pass over the samples begins or is."""

    epoch: int = 0
    start: int = 0
    """The position in the epoch from which the ranks divide it."""
    taken: int = 0
    """Number of samples that this rank has taken since."""
    in_worker: int = 0
    """Number of samples that this worker has taken since; 0 where the rank's are counted."""


class _Shared:
    """What a process shares with the workers that it starts, in shared memory: persistent workers live on.

    `where` is where the next pass begins, and `pending` whether a worker has still to begin there: every later pass
    begins at the beginning of its epoch.
    """

    def __init__(self) -> None:
        self.where = torch.zeros(3, dtype=torch.int64).share_memory_()
        self.pending = torch.zeros(_MOST_WORKERS, dtype=torch.uint8).share_memory_()
        self.running = torch.zeros(4, dtype=torch.int64).share_memory_()  # where the workers' pass began; 1: it has

    def __setstate__(self, state: dict[str, torch.Tensor]) -> None:
        # A worker that is spawned gets the same memory; a dataset sent elsewhere needs its own, for its own workers.
        self.__dict__.update({name: tensor.share_memory_() for name, tensor in state.items()})

    def put(self, position: Position) -> None:
        """Let the next pass begin at a position."""
        self.where[:] = torch.tensor([position.epoch, position.start, position.taken])
        self.pending.fill_(1)
        self.running.zero_()

    def next(self) -> Position:
        """Where the next pass begins."""
        epoch, start, taken = self.where.tolist()
        return Position(epoch=epoch, start=start, taken=taken)

    def begin(self, worker: int, workers: int) -> Position:
        """Where a worker begins the pass that it begins now."""
        position = self.next() if self.pending[worker] else Position(epoch=int(self.where[0]))
        self.pending[worker] = 0
        self.pending[workers:] = 0
        return position

    def workers_began(self, position: Position) -> None:
        """Tell the main process that workers read, and from where on."""
        self.running[:] = torch.tensor([position.epoch, position.start, position.taken, 1])

    def of_workers(self) -> Position | None:
        """Where the pass of the workers began; None when none has begun since `put`."""
        epoch, start, taken, began = self.running.tolist()
        return Position(epoch=epoch, start=start, taken=taken) if began else None


class TorchDataset(IterableDataset):
    """The samples of a snapshot, or of one split of it, each exactly once an epoch over all ranks and workers.

    A sample is a dict: `tokens`, uint16 [H, W], or `rgb`, uint8 [H, W, 3]; `label`, the number of its class or -1;
    `class_name`, "" without a class; `key`, that of its image in the index; `crop`, 0 unless images have several crops.

    Every shard is compared with the snapshot's checksum. Its length is the number of this rank's samples in an epoch.
    """

    def __init__(
        self,
        dataset: str,
        *,
        split: str | None = None,
        snapshot: int | None = None,
        pixels: str = "tokens",
        shuffle: bool = False,
        seed: int = 0,
        window_shards: int = 64,
        batch_size: int | None = None,
        transform: Callable[[dict[str, Any]], Any] | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        equal_ranks: bool = False,
        cache: str | None = None,
        cache_bytes: int | None = None,
    ) -> None:
        """Open a snapshot by number, the newest without one. Raises IgptError when there is nothing to read.

        With `shuffle`, each epoch has another order: shards are shuffled, and samples in windows of `window_shards`.
        `batch_size` is the DataLoader's: it is needed to go on in the middle with the workers of a plain DataLoader, or
        with another number of workers or ranks. `transform` is called with each sample. Rank and world size are those
        of torch.distributed unless they are given. Ranks' numbers of samples differ by at most one; `equal_ranks`
        leaves out the last samples of an epoch, fewer than ranks, so that they do not. `cache` is the folder of the
        shards on this node, of at most `cache_bytes`.
        """
        super().__init__()
        if batch_size is not None and batch_size < 1:
            raise IgptError(f"batch_size is {batch_size}: it must be at least 1")
        if (rank is None) != (world_size is None):
            raise IgptError("rank and world_size belong together: give both, or neither")
        if rank is not None and world_size is not None and not 0 <= rank < world_size:
            raise IgptError(f"rank is {rank} of {world_size}: it must be from 0 to {world_size - 1}")
        if window_shards < 1:
            raise IgptError(f"window_shards is {window_shards}: it must be at least 1")
        self.selection: Selection = select(dataset, split=split, snapshot=snapshot, pixels=pixels)
        self._order_of = {"shuffle": shuffle, **({"seed": seed, "window_shards": window_shards} if shuffle else {})}
        if cache_bytes is not None:
            check_room(self.selection.shards, (), window_shards if shuffle else 1, cache_bytes)
        if pixels == "rgb":
            _ = self.selection.colours  # here, so that workers need not read it
        self._batch_size, self._transform, self._equal_ranks = batch_size, transform, equal_ranks
        self._given_rank = None if rank is None or world_size is None else (rank, world_size)
        self._cache, self._cache_bytes = cache, cache_bytes
        self._shared = _Shared()
        self._began: Position | None = None
        """Where the pass of this process began."""
        self._now: Position | None = None
        """Where it is."""
        self._loaded: Position | None = None
        """Where the next pass of this process begins, if it is a worker that was told so itself."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes by number."""
        return self.selection.snapshot.classes

    def _rank(self) -> tuple[int, int]:
        if self._given_rank is None and distributed.is_available() and distributed.is_initialized():
            return distributed.get_rank(), distributed.get_world_size()
        return self._given_rank or (0, 1)

    def _share(self, start: int, batch: int | None, rank: int, world_size: int) -> Share:
        return Share(
            total=self.selection.samples,
            start=start,
            batch=batch or _BATCH,
            rank=rank,
            world_size=world_size,
            equal=self._equal_ranks,
        )

    def __len__(self) -> int:
        return len(self._share(0, self._batch_size, *self._rank()))

    def __getstate__(self) -> dict[str, Any]:
        # A worker that is not forked has no process group.
        return {**self.__dict__, "_given_rank": self._rank()}

    def set_epoch(self, epoch: int) -> None:
        """Let the next pass begin epoch `epoch`; nothing when it is that one, which may have been resumed."""
        if epoch != self._shared.where[0]:
            self._shared.put(Position(epoch=epoch))
            self._began = self._now = self._loaded = None

    def state_dict(self, *, samples: int | None = None) -> dict[str, Any]:
        """Where this rank's pass is, from which a dataset goes on that loads it.

        `samples` is how many samples this rank has taken in this pass. The dataset counts them itself, unless the
        workers of a plain DataLoader read them, or something on their way keeps some back.
        Raises IgptError when it is needed and not given.
        """
        of_workers = self._shared.of_workers() if get_worker_info() is None else None
        if of_workers is not None and (samples is None or self._batch_size is None):
            raise IgptError(
                "the workers of a DataLoader read the samples: open the dataset with the DataLoader's batch_size, "
                "and give state_dict(samples=...) how many this rank has taken in this pass"
            )
        if samples is not None:
            began = of_workers or self._began or self._shared.next()
            position = replace(began, taken=began.taken + samples)
        else:
            position = self._now or self._shared.next()
        rank, world_size = self._rank()
        info = get_worker_info()
        return {
            **asdict(position),
            **self._identity(),
            "batch_size": self._batch_size,
            "rank": rank,
            "world_size": world_size,
            "workers": info.num_workers if info is not None else 0,
        }

    def _identity(self) -> dict[str, Any]:
        chosen = self.selection
        return {"content_digest": chosen.snapshot.content_digest, "split": chosen.split, **self._order_of}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a pass was: on as many ranks, or, after whole batches, on any number of them.

        Raises IgptError when the state is of other samples, of another order, or within a batch of other ranks.
        """
        for name, value in self._identity().items():
            if state.get(name) != value:
                raise IgptError(
                    f"the state is of other samples or another order: {name} was {state.get(name)!r}, and is {value!r}"
                )
        position = Position(**{name: int(state[name]) for name in Position.__dataclass_fields__})
        info = get_worker_info()
        if position.in_worker and (info is None or info.num_workers != state["workers"]):
            raise IgptError(
                f"the state is of one of {state['workers']} workers: load it with torchdata's StatefulDataLoader and "
                "as many workers"
            )
        world_size = self._rank()[1]
        if (state["batch_size"], state["world_size"]) != (self._batch_size, world_size):
            before = self._share(position.start, state["batch_size"], state["rank"], state["world_size"])
            reached = before.reached(position.taken)
            if reached is None or position.in_worker:
                raise IgptError(
                    f"the state is within a batch of {state['batch_size'] or 'no given size'} on {state['world_size']} "
                    "ranks: load it with the same, or save it after a whole batch"
                )
            position = Position(epoch=position.epoch, start=reached)
        self._began = self._now = None
        if info is None:
            self._shared.put(position)
        else:
            self._loaded = position

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        if workers > _MOST_WORKERS:
            raise IgptError(f"there are {workers} workers: use at most {_MOST_WORKERS} a rank")
        begin, self._loaded = self._loaded or self._shared.begin(worker, workers), None
        if info is not None:
            self._shared.workers_began(begin)
        return self._read(begin, worker, workers, in_worker=info is not None)

    def _read(self, begin: Position, worker: int, workers: int, *, in_worker: bool) -> Iterator[Any]:
        share = self._share(begin.start, self._batch_size, *self._rank())
        self._began = self._now = begin
        count = 0
        with _Samples(self.selection, self._order_of, begin.epoch, self._cache, self._cache_bytes) as samples:
            for indices in share.of_worker(begin.taken, worker, workers):
                skip = min(len(indices), max(0, begin.in_worker - count))
                count += skip
                for positions in share.positions(indices.start + skip, indices.stop):
                    for sample in samples.at(positions):
                        count += 1
                        self._now = replace(
                            begin, **({"in_worker": count} if in_worker else {"taken": begin.taken + count})
                        )
                        yield self._present(sample)

    def _present(self, sample: Sample) -> Any:
        key, crop = image_of(sample.key)
        fields = {
            self.selection.pixels: torch.from_numpy(sample.pixels),
            "label": sample.label,
            "class_name": self.selection.class_name(sample.label) or "",
            "key": key,
            "crop": crop,
        }
        return fields if self._transform is None else self._transform(fields)


class _Samples:
    """The samples of one epoch, read through the cache of this node."""

    def __init__(
        self, selection: Selection, order_of: Mapping[str, Any], epoch: int, cache: str | None, limit: int | None
    ) -> None:
        self._selection, self._first = selection, epoch * selection.samples
        order = SampleOrder([shard.samples for shard in selection.shards], **order_of)
        self._reader = WindowReader(selection.shards, order, ShardCache(selection.snapshot, cache, limit))

    def __enter__(self) -> "_Samples":
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.close()

    def at(self, positions: range) -> Iterator[Sample]:
        """The samples at consecutive positions of the epoch."""
        shards, places = self._reader.locate(range(self._first + positions.start, self._first + positions.stop))
        images = gather(shards, places)
        side = self._selection.snapshot.resolution
        pixels = self._selection.present(images.tokens_NT.reshape(-1, side, side))
        rows = zip(places.shards.tolist(), places.rows.tolist(), pixels, images.labels_N.tolist(), strict=True)
        for shard, row, picture, label in rows:
            held = shards[shard]
            yield Sample(pixels=picture, label=label, key=held.view.key(row), shard=held.shard)
