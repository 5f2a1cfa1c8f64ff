"""Threads that work beside a block."""

import threading

import pytest

from pipeline.background import Ended, in_background


def test_the_thread_ends_with_the_block_also_when_it_raises() -> None:
    calls = threading.Semaphore(0)

    def work(ended: Ended) -> None:
        while not ended(0.001):
            calls.release()

    with pytest.raises(ZeroDivisionError), in_background(work, name="counting"):
        assert calls.acquire(timeout=10) and calls.acquire(timeout=10)
        assert "counting" in {thread.name for thread in threading.enumerate()}
        1 / 0  # noqa: B018
    assert "counting" not in {thread.name for thread in threading.enumerate()}


def test_a_wait_ends_as_soon_as_the_block_does() -> None:
    waited: list[bool] = []
    with in_background(lambda ended: waited.append(ended(3600)), name="waiting"):
        pass
    assert waited == [True]
