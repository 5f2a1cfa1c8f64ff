"""The sample order: each sample exactly once per epoch, independent of the number of workers, even if it changes."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.samples.order import SampleOrder, micro_ranges, rank_range

SHARDS = st.lists(st.integers(1, 40), min_size=1, max_size=12)
MICRO = st.none() | st.integers(1, 9)


def pairs(order: SampleOrder, start: int, stop: int) -> list[tuple[int, int]]:
    samples = order.at(start, stop)
    return list(zip(samples.shards.tolist(), samples.rows.tolist(), strict=True))


def parts_of_all(cursor: int, batch: int, workers: int, micro: int | None) -> list[list[range]]:
    return [micro_ranges(cursor, batch, rank, workers, micro) for rank in range(workers)]


@given(SHARDS, st.integers(0, 5), st.integers(1, 5), st.integers(0, 3))
def test_every_sample_comes_once_an_epoch(counts: list[int], seed: int, window: int, epoch: int) -> None:
    order = SampleOrder(counts, seed=seed, window_shards=window)
    epoch_pairs = pairs(order, epoch * order.samples, (epoch + 1) * order.samples)
    assert sorted(epoch_pairs) == [(shard, row) for shard, count in enumerate(counts) for row in range(count)]


@given(SHARDS, st.integers(1, 5), st.integers(0, 3))
def test_without_shuffling_every_epoch_is_in_order(counts: list[int], window: int, epoch: int) -> None:
    order = SampleOrder(counts, window_shards=window, shuffle=False)
    in_order = [(shard, row) for shard, count in enumerate(counts) for row in range(count)]
    assert pairs(order, epoch * order.samples, (epoch + 1) * order.samples) == in_order


@pytest.mark.parametrize("workers", [1, 2, 3, 4, 8])
@given(SHARDS, st.integers(1, 5), MICRO, st.integers(8, 50), st.integers(0, 200))
def test_global_batches_do_not_depend_on_the_number_of_workers(
    workers: int, counts: list[int], window: int, micro: int | None, batch: int, cursor: int
) -> None:
    order = SampleOrder(counts, seed=1, window_shards=window)
    whole = pairs(order, cursor, cursor + batch)
    of_ranks = [rank_range(cursor, batch, rank, workers) for rank in range(workers)]
    assert max(map(len, of_ranks)) - min(map(len, of_ranks)) <= 1
    parts = parts_of_all(cursor, batch, workers, micro)
    assert [[p for part in ranks for p in part] for ranks in parts] == [list(positions) for positions in of_ranks]
    # Read micro batch by micro batch, the global batch is the same samples in the same order.
    batch_pairs = [pair for ranks in parts for part in ranks for pair in pairs(order, part.start, part.stop)]
    assert batch_pairs == whole


@given(st.integers(1, 64), st.integers(1, 8), st.integers(1, 9), st.integers(0, 10**12))
def test_all_ranks_have_the_same_number_of_micro_batches_and_none_is_too_large(
    batch: int, workers: int, micro: int, cursor: int
) -> None:
    batch = max(batch, workers)
    parts = parts_of_all(cursor, batch, workers, micro)
    assert len({len(ranks) for ranks in parts}) == 1
    assert max(len(part) for ranks in parts for part in ranks) <= micro
    assert all(ranks[-1] for ranks in parts)  # gradients are synchronized in the last micro batch


CREWS = st.lists(st.tuples(st.integers(1, 8), MICRO, st.integers(1, 9)), min_size=1, max_size=8)


@given(SHARDS, st.integers(1, 5), st.integers(8, 20), CREWS)
def test_a_run_that_changes_its_number_of_workers_sees_every_sample_once_an_epoch(
    counts: list[int], window: int, batch: int, crews: list[tuple[int, int | None, int]]
) -> None:
    """Each crew (workers, micro batch, steps) trains for some steps and dies; the next crew continues."""
    order = SampleOrder(counts, seed=3, window_shards=window)
    cursor, seen = 0, []
    epochs = 0
    while epochs < 2:
        for workers, micro, steps in crews:
            for _ in range(steps):
                for ranks in parts_of_all(cursor, batch, workers, micro):
                    seen += [pair for part in ranks for pair in pairs(order, part.start, part.stop)]
                cursor += batch
        epochs = cursor // order.samples
    assert seen == pairs(order, 0, cursor)
    every = [(shard, row) for shard, count in enumerate(counts) for row in range(count)]
    for epoch in range(epochs):
        assert sorted(seen[epoch * order.samples : (epoch + 1) * order.samples]) == every


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


def test_memory_holds_a_window_of_a_hundred_million_samples() -> None:
    shards, shard_samples, window = 12_208, 8192, 16
    order = SampleOrder([shard_samples] * shards, seed=0, window_shards=window)
    assert order.samples > 100_000_000
    tracemalloc.start()
    try:
        for position in (0, 50_000_000, order.samples - 64, 7 * order.samples + 12_345_678):
            samples = order.at(position, position + 128)
            assert len(set(zip(samples.shards.tolist(), samples.rows.tolist(), strict=True))) == 128
        current, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Two windows of two int64 per sample and the plans of two epochs; the peak adds temporary arrays of a permutation.
    assert current < 2 * (window * shard_samples * 16) + 2_000_000
    assert peak < 12 * (window * shard_samples * 8) + 2_000_000
