"""Reads images in training order: opens the shards of a window, and those of the next one ahead of time."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from pipeline.dataset.snapshot import ShardEntry
from pipeline.errors import IgptError
from pipeline.samples.order import SampleOrder, Samples
from pipeline.samples.shard_cache import Images, ShardCache, ShardImages, gather

_OPENED_AT_ONCE = 4


class WindowReader:
    """Reads images at increasing positions of the sample order.

    Shards are fetched and their checksums verified on threads of its own; `read` waits for those that it needs. At most
    two windows are open, so other processes of the node find room for the same two.
    """

    def __init__(self, shards: Sequence[ShardEntry], order: SampleOrder, cache: ShardCache) -> None:
        self._shards, self._order, self._cache = shards, order, cache
        self._opening: dict[int, Future[ShardImages | None]] = {}
        self._window: tuple[int, int] | None = None
        self._pool = ThreadPoolExecutor(_OPENED_AT_ONCE, thread_name_prefix="shards")

    def read(self, positions: range) -> Images:
        """The images at consecutive positions; waits for shards that are not open yet."""
        views, samples = self.locate(positions)
        return gather(views or [self._view(next(iter(self._opening)))], samples)

    def locate(self, positions: range) -> tuple[list[ShardImages], Samples]:
        """The shards that hold consecutive positions, and where in them the samples are, in order.

        Waits for shards that are not open yet.
        """
        samples = self._order.at(positions.start, positions.stop)
        self._enter(self._order.window_of(positions.start))
        numbers, shard_index = np.unique(samples.shards, return_inverse=True)
        # A batch that crosses a window boundary also needs shards of the next window.
        views = [self._view(number) for number in numbers.tolist()]
        return views, Samples(shards=shard_index, rows=samples.rows)

    def _view(self, number: int) -> ShardImages:
        ahead = self._opening.get(number)
        view = None if ahead is None or ahead.exception() is not None else ahead.result()
        if view is None:  # there was no room for it ahead of time, or an error, which is raised if it persists
            view = self._cache.open(self._shards[number])
            self._opening[number] = _done(view)
        return view

    def _enter(self, window: tuple[int, int]) -> None:
        """Open the shards of a window, begin to open those of the next one, and close all others."""
        if window == self._window:
            return
        self._window = window
        current = self._order.window_shards(*window)
        following = self._order.window_shards(*self._order.next_window(*window))
        for number in set(self._opening) - set(current) - set(following):
            opening = self._opening.pop(number)
            if not opening.cancel():
                opening.exception()  # waits
            self._cache.close(self._shards[number])
        for number in dict.fromkeys([*current, *following]):
            if number not in self._opening:
                needed = number in current
                self._opening[number] = self._pool.submit(self._cache.open_ahead, self._shards[number], needed=needed)
        for number in current:
            self._view(number)

    def close(self) -> None:
        """Stop opening shards ahead."""
        self._pool.shutdown(wait=True, cancel_futures=True)


def _done(view: ShardImages) -> Future[ShardImages | None]:
    future: Future[ShardImages | None] = Future()
    future.set_result(view)
    return future


def check_room(shards: Sequence[ShardEntry], always_open: Sequence[ShardEntry], window: int, limit_bytes: int) -> None:
    """Raise IgptError when a cache is too small for the two largest possible windows and the shards always open."""
    largest = sorted((shard.bytes for shard in shards), reverse=True)[: 2 * window]
    needed = sum(largest) + sum(shard.bytes for shard in always_open)
    if needed > limit_bytes:
        raise IgptError(
            f"cache_bytes is {limit_bytes:,}: two windows of window_shards {window} and the validation split need "
            f"{needed:,} bytes; raise cache_bytes to that, or lower window_shards"
        )
