"""Ranks and workers read each sample of an epoch once, also when other numbers of them go on in the middle."""

from collections.abc import Iterable
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.readers.shares import Share

TOTALS, BATCHES, RANKS = st.integers(0, 60), st.integers(1, 7), st.integers(1, 5)


def shares(total: int, start: int, batch: int, ranks: int, *, equal: bool = False) -> list[Share]:
    return [
        Share(total=total, start=start, batch=batch, rank=rank, world_size=ranks, equal=equal) for rank in range(ranks)
    ]


def read(share: Share, first: int = 0, last: int = 10**6) -> list[int]:
    return [position for positions in share.positions(first, last) for position in positions]


def together(parts: Iterable[list[int]]) -> list[int]:
    return list(chain.from_iterable(parts))


@given(TOTALS, BATCHES, RANKS, st.data())
def test_ranks_divide_the_rest_of_an_epoch(total: int, batch: int, ranks: int, draw: st.DataObject) -> None:
    start = draw.draw(st.integers(0, total))
    divided = shares(total, start, batch, ranks)
    assert [len(read(share)) for share in divided] == [len(share) for share in divided]
    assert max(map(len, divided)) - min(map(len, divided)) <= 1
    assert sorted(together(map(read, divided))) == list(range(start, total))
    alike = shares(total, start, batch, ranks, equal=True)
    assert len(set(map(len, alike))) == 1
    left_out = set(range(start, total)) - set(together(map(read, alike)))
    assert len(left_out) < ranks and (not left_out or max(left_out) == total - 1)


@given(TOTALS, BATCHES, RANKS, st.integers(1, 4), st.integers(0, 30))
def test_workers_in_turns_read_what_the_rank_reads(
    total: int, batch: int, ranks: int, workers: int, first: int
) -> None:
    share = shares(total, 0, batch, ranks)[-1]
    turns = [list(share.of_worker(first, worker, workers)) for worker in range(workers)]
    in_turns = [turn[number] for number in range(max(map(len, turns))) for turn in turns if number < len(turn)]
    assert [index for indices in in_turns for index in indices] == list(range(first, len(share)))
    assert all(len(indices) == batch for indices in in_turns[:-1])


@given(TOTALS, BATCHES, RANKS, BATCHES, RANKS, st.booleans(), st.data())
def test_another_number_of_ranks_goes_on_after_whole_batches(
    total: int, batch: int, ranks: int, new_batch: int, new_ranks: int, equal: bool, draw: st.DataObject
) -> None:
    before = shares(total, 0, batch, ranks, equal=equal)
    batches = draw.draw(st.integers(0, -(-len(before[0]) // batch)))
    taken = [min(batches * batch, len(share)) for share in before]
    reached = {share.reached(count) for share, count in zip(before, taken, strict=True)}
    start = before[0].reached(taken[0])
    assert start is not None and reached <= {start, None}
    seen = together(read(share, 0, count) for share, count in zip(before, taken, strict=True))
    rest = together(map(read, shares(total, start, new_batch, new_ranks)))
    assert len(seen + rest) == len({*seen, *rest})
    left_out = set(range(total)) - {*seen, *rest}
    assert len(left_out) < (ranks if equal and start == total else 1)


@pytest.mark.parametrize(("taken", "place"), [(0, 0), (1, None), (3, 6), (4, None), (6, 12), (7, None), (8, 15)])
def test_within_a_batch_the_place_is_not_known(taken: int, place: int | None) -> None:
    assert shares(15, 0, 3, 2)[0].reached(taken) == place
