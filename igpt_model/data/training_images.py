"""A worker's part of the training images, in their order and ahead of the steps that train on them."""

from collections.abc import Iterator

from igpt_model.config import PretrainConfig
from igpt_model.data.batches import HostImages, Inputs, Preparation
from igpt_model.data.read_ahead import ReadAhead
from igpt_model.worker import Worker
from pipeline.dataset.snapshot import Snapshot
from pipeline.samples.order import SampleOrder, micro_ranges
from pipeline.samples.shard_cache import ShardCache
from pipeline.samples.window_reader import WindowReader

_READ_AHEAD = 2  # micro batches


class TrainingImages:
    """The images from the global batch at `cursor` on, for a number of steps."""

    def __init__(
        self,
        config: PretrainConfig,
        snapshot: Snapshot,
        cache: ShardCache,
        preparation: Preparation,
        worker: Worker,
        *,
        cursor: int,
        steps: int,
    ) -> None:
        self._config, self._worker, self._preparation = config, worker, preparation
        shards = snapshot.of_split("train")
        samples = [shard.samples for shard in shards]
        order = SampleOrder(samples, seed=config.optimizer.seed, window_shards=config.data.window_shards)
        self._reader = WindowReader(shards, order, cache)
        self._positions = range(cursor, cursor + steps * config.optimizer.global_batch)
        self._ahead = ReadAhead(self._read, self._ranges_ahead(), ahead=_READ_AHEAD)

    def ranges(self, cursor: int) -> list[range]:
        """The positions of this worker's micro batches in the global batch at a cursor."""
        config, worker = self._config, self._worker
        return micro_ranges(
            cursor, config.optimizer.global_batch, worker.rank, worker.world_size, config.execution.micro_batch
        )

    def _ranges_ahead(self) -> Iterator[range]:
        for cursor in self._positions[:: self._config.optimizer.global_batch]:
            yield from self.ranges(cursor)

    def example(self, cursor: int) -> Inputs:
        """The last micro batch of a global batch, before any is taken."""
        positions = self.ranges(cursor)[-1]
        return self.inputs(self._read(positions), positions)

    def take(self) -> HostImages:
        """The images of the next micro batch; waits for them."""
        return self._ahead.take()

    def inputs(self, images: HostImages, positions: range) -> Inputs:
        """The model inputs of images at consecutive positions."""
        return self._preparation.for_training(images, positions.start)

    def _read(self, positions: range) -> HostImages:
        return self._preparation.on_host(self._reader.read(positions))

    def close(self) -> None:
        """Stop reading; waits for what is being read."""
        self._ahead.close()
        self._reader.close()
