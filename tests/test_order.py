"""The order of samples: exactly once an epoch, and the same for any number of workers."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from igpt_model.order import SampleOrder, rank_range

SHARDS = st.lists(st.integers(1, 40), min_size=1, max_size=12)


def pairs(order: SampleOrder, start: int, stop: int) -> list[tuple[int, int]]:
    samples = order.at(start, stop)
    return list(zip(samples.shards.tolist(), samples.rows.tolist(), strict=True))


@given(SHARDS, st.integers(0, 5), st.integers(1, 5), st.integers(0, 3))
def test_every_sample_comes_once_an_epoch(counts: list[int], seed: int, window: int, epoch: int) -> None:
    order = SampleOrder(counts, seed=seed, window_shards=window)
    found = pairs(order, epoch * order.samples, (epoch + 1) * order.samples)
    assert sorted(found) == [(shard, row) for shard, count in enumerate(counts) for row in range(count)]


@given(SHARDS, st.integers(1, 5), st.integers(1, 9), st.integers(8, 50), st.integers(0, 200))
def test_global_batches_do_not_depend_on_the_number_of_workers(
    counts: list[int], window: int, workers: int, batch: int, cursor: int
) -> None:
    order = SampleOrder(counts, seed=1, window_shards=window)
    whole = pairs(order, cursor, cursor + batch)
    parts = [pairs(order, *rank_range(cursor, batch, rank, workers)) for rank in range(workers)]
    assert [pair for part in parts for pair in part] == whole
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_epochs_and_seeds_differ() -> None:
    order = SampleOrder([50, 50], seed=0, window_shards=2)
    first, second = pairs(order, 0, 100), pairs(order, 100, 200)
    assert first != second
    assert first != pairs(SampleOrder([50, 50], seed=1, window_shards=2), 0, 100)


def test_a_window_mixes_only_its_own_shards() -> None:
    order = SampleOrder([10] * 6, seed=0, window_shards=2)
    for window in range(3):
        samples = order.at(20 * window, 20 * window + 20)
        assert len(np.unique(samples.shards)) == 2
        assert (np.diff(samples.shards) != 0).sum() > 3
