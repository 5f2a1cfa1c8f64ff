"""A snapshot as a dataset of Ray Data: the nodes of the cluster read its shards.

    samples = ray_data.read("s3://datasets/photos", split="train", pixels="rgb")
    samples.map_batches(...)

Shuffling, dividing among trainers and batches are Ray Data's own.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import ray.data
from ray.data.block import BlockMetadata

from pipeline.dataset import record
from pipeline.dataset.record import Record
from pipeline.dataset.snapshot import ShardEntry
from pipeline.partition import part_of
from pipeline.readers import arrow
from pipeline.readers.selection import Selection, select


def read(
    dataset: str,
    *,
    split: str | None = None,
    snapshot: int | None = None,
    pixels: str = "tokens",
    override_num_blocks: int | None = None,
) -> ray.data.Dataset:
    """The samples of a snapshot, with the columns of `arrow.tables`; pixels are tensors [H, W] or [H, W, 3].

    Each block is a shard, read by a task with at most one shard in memory. Raises IgptError when there is nothing to
    read; a shard that is damaged fails its task with one.
    """
    selection = select(dataset, split=split, snapshot=snapshot, pixels=pixels)
    blocks = min(override_num_blocks or len(selection.shards), len(selection.shards))
    return ray.data.read_datasource(SnapshotDatasource(selection), override_num_blocks=blocks)


class SnapshotDatasource(ray.data.Datasource):
    """The shards of a snapshot as tasks of Ray Data."""

    def __init__(self, selection: Selection) -> None:
        super().__init__()
        self._selection = selection
        # What each task is sent: no list of all shards and scans, which grows with the dataset, but the palette.
        self._of_a_task = replace(selection, shards=(), snapshot=replace(selection.snapshot, shards=()))
        if selection.pixels == "rgb":
            _ = self._of_a_task.colours
        addresses = record.of_addresses(selection.snapshot)
        self._addresses = None if addresses is None else replace(addresses, scans=())

    def get_name(self) -> str:
        """The name of the tasks."""
        return "Snapshot"

    def estimate_inmemory_data_size(self) -> int:
        """The size of the shards, in bytes."""
        return sum(shard.bytes for shard in self._selection.shards)

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ray.data.ReadTask]:
        """At most `parallelism` tasks, of consecutive shards each."""
        shards = self._selection.shards
        count = min(parallelism, len(shards))
        parts = (part_of(len(shards), number, count) for number in range(count))
        return [self._task(shards[part.start : part.stop], per_task_row_limit) for part in parts]

    def _task(self, shards: Sequence[ShardEntry], limit: int | None) -> ray.data.ReadTask:
        of_a_task, addresses = self._of_a_task, self._addresses
        return ray.data.ReadTask(
            lambda: _blocks(of_a_task, shards, addresses),
            BlockMetadata(
                num_rows=sum(shard.samples for shard in shards),
                size_bytes=sum(shard.bytes for shard in shards),
                exec_stats=None,
                input_files=tuple(of_a_task.url(shard) for shard in shards),
            ),
            per_task_row_limit=limit,
        )


def _blocks(selection: Selection, shards: Sequence[ShardEntry], addresses: Record | None) -> Iterator[pa.Table]:
    for shard in shards:
        table = arrow.table_of(selection, shard, addresses)
        position = table.column_names.index(selection.pixels)
        tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(arrow.pixels_of(table[selection.pixels]))
        yield table.set_column(position, selection.pixels, tensors)
