"""Images in the order of training: the shards of a window at hand, and those of the next fetched meanwhile."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from igpt_model.data.order import SampleOrder, Samples
from igpt_model.data.shard_cache import Images, ShardCache, ShardImages, gather
from pipeline.dataset.snapshot import ShardEntry
from pipeline.errors import IgptError

_FETCHES_AT_ONCE = 4


class WindowReader:
    """Reads at positions of the endless order, which rise but for the border of two windows."""

    def __init__(self, shards: Sequence[ShardEntry], order: SampleOrder, cache: ShardCache) -> None:
        self._shards, self._order, self._cache = shards, order, cache
        self._open: dict[int, ShardImages] = {}
        self._window: tuple[int, int] | None = None
        self._pool = ThreadPoolExecutor(_FETCHES_AT_ONCE, thread_name_prefix="shards")

    def read(self, positions: range) -> Images:
        """The images at consecutive positions; waits for their shards where they are not there yet."""
        samples = self._order.at(positions.start, positions.stop)
        self._enter(self._order.window_of(positions.start))
        numbers, places = np.unique(samples.shards, return_inverse=True)
        # A batch across a border needs shards of the next window as well.
        views = [self._view(number) for number in numbers.tolist()] or [self._view(next(iter(self._open)))]
        return gather(views, Samples(shards=places, rows=samples.rows))

    def _view(self, number: int) -> ShardImages:
        if number not in self._open:
            self._open[number] = self._cache.open(self._shards[number])
        return self._open[number]

    def _enter(self, window: tuple[int, int]) -> None:
        """Have a window's shards, ask for the next one's, and let go of all others."""
        if window == self._window:
            return
        self._window = window
        ours, theirs = self._order.window_shards(*window), self._order.window_shards(*self._order.next_window(*window))
        for number in set(self._open) - set(ours) - set(theirs):
            del self._open[number]
            self._cache.close(self._shards[number])
        for number in ours:
            self._view(number)
        for number in set(theirs) - set(ours):
            self._pool.submit(self._cache.fetch, self._shards[number])  # what it raises, opening the shard raises again

    def close(self) -> None:
        """Ask for nothing more."""
        self._pool.shutdown(wait=True, cancel_futures=True)


def check_room(shards: Sequence[ShardEntry], held: Sequence[ShardEntry], window: int, limit_bytes: int) -> None:
    """Raise IgptError when a cache has no room for two windows of the largest shards beside those that are held."""
    largest = sorted((shard.bytes for shard in shards), reverse=True)[: 2 * window]
    needed = sum(largest) + sum(shard.bytes for shard in held)
    if needed > limit_bytes:
        raise IgptError(
            f"cache_bytes is {limit_bytes:,}: two windows of window_shards {window} and the validation split have "
            f"{needed:,} bytes; give the cache that many, or make the windows smaller"
        )
