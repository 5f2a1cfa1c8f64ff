"""Which samples of an epoch a rank and each of its workers read: arithmetic on positions. Pure.

An epoch is a sequence of positions. From `start` on, it is cut into global batches: the first `batch` positions of one
belong to rank 0, the next ones to rank 1, and so on. What is left at the end is divided evenly; rank 0 has a sample of
it, if there is one. So ranks that are in step have together read the positions up to one place, from which any number
of ranks can go on.

A rank's samples in that order have indices 0, 1, 2, ... Its workers take turns in batches, and a DataLoader takes
their batches in turns: it yields the samples of a rank in the order of their indices, whatever the number of workers.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.partition import part_of


@dataclass(frozen=True, kw_only=True)
class Share:
    """A rank's samples of the rest of an epoch."""

    total: int
    """Number of positions in the epoch."""
    start: int
    """The position from which the ranks divide the epoch."""
    batch: int
    rank: int
    world_size: int
    equal: bool
    """Whether the last positions are left out that would give some ranks one sample more than others."""

    @property
    def _stop(self) -> int:
        return self.total - (self.total - self.start) % self.world_size if self.equal else self.total

    @property
    def _whole(self) -> int:
        """Number of the rank's samples in whole global batches."""
        return (self._stop - self.start) // (self.batch * self.world_size) * self.batch

    @property
    def _rest(self) -> range:
        """The rank's positions after the last whole global batch."""
        first = self.start + self._whole * self.world_size
        part = part_of(self._stop - first, self.world_size - 1 - self.rank, self.world_size)
        return range(first + part.start, first + part.stop)

    def __len__(self) -> int:
        return self._whole + len(self._rest)

    def positions(self, first: int, last: int) -> Iterator[range]:
        """The positions of the rank's samples with indices `first` to `last`, exclusive, in their order."""
        last = min(last, len(self))
        while first < last:
            if first >= self._whole:
                yield self._rest[first - self._whole : last - self._whole]
                return
            turn, within = divmod(first, self.batch)
            take = min(last - first, self.batch - within)
            begin = self.start + (turn * self.world_size + self.rank) * self.batch + within
            yield range(begin, begin + take)
            first += take

    def of_worker(self, first: int, worker: int, workers: int) -> Iterator[range]:
        """The indices that a worker reads when the workers go on from index `first`: batch for batch, in turns."""
        for begin in range(first + worker * self.batch, len(self), workers * self.batch):
            yield range(begin, min(begin + self.batch, len(self)))

    def reached(self, taken: int) -> int | None:
        """The position up to which all samples are read when this rank has taken `taken` samples, and all are in step.

        None within a batch, and where only other ranks have a sample of the last batch, which they may have taken.
        """
        rest = self._stop - self.start - self._whole * self.world_size
        if taken == len(self) and (self._rest or not rest):
            return self.total
        if taken == self._whole and not self._rest and rest:
            return None
        return self.start + taken * self.world_size if taken % self.batch == 0 and taken <= self._whole else None
