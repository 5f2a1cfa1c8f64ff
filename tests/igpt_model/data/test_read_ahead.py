"""What the next steps need is read while a step computes, in order, on a thread of its own."""

import threading

import pytest

from igpt_model.data.read_ahead import ReadAhead
from pipeline.errors import IgptError

RANGES = [range(start, start + 5) for start in range(0, 50, 5)]


def test_the_next_ranges_are_read_before_they_are_taken() -> None:
    read: list[range] = []
    threads = set()
    progress = threading.Condition()

    def note(positions: range) -> range:
        with progress:
            read.append(positions)
            threads.add(threading.current_thread())
            progress.notify()
        return positions

    ahead = ReadAhead(note, RANGES, ahead=2)
    assert read == []
    for number, positions in enumerate(RANGES, 1):
        assert ahead.take() == positions
        with progress:
            wanted = min(number + 2, len(RANGES))
            assert progress.wait_for(lambda wanted=wanted: len(read) >= wanted, timeout=30)
            assert len(read) == wanted, "no more than asked for, since each takes memory"
    ahead.close()
    assert read == RANGES
    assert len(threads) == 1 and threading.current_thread() not in threads


def test_an_error_is_raised_in_its_turn() -> None:
    def read(positions: range) -> range:
        if positions.start == 10:
            raise IgptError("the third cannot be read")
        return positions

    ahead = ReadAhead(read, RANGES, ahead=5)
    assert [ahead.take(), ahead.take()] == RANGES[:2]
    with pytest.raises(IgptError, match="the third"):
        ahead.take()
    ahead.close()
