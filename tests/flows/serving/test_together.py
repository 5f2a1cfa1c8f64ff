"""Requests of many threads share passes, and each gets its own answer or its own error."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from flows.serving.together import Together
from tests.rigs.waiting import wait_until

SECONDS = 60


@dataclass(frozen=True)
class Request:
    settings: dict[str, Any]
    pictures: np.ndarray | None


class Model:
    """Adds params["add"] to numbers, in passes that wait until they may begin."""

    def __init__(self) -> None:
        self.may_begin = threading.Event()
        self.begun = threading.Semaphore(0)
        self.passes: list[list[int]] = []

    def prepare(self, model_input: Any, params: dict[str, Any] | None = None) -> Request:
        if model_input == "bad":
            raise ValueError("not a number")
        settings = {"task": "features", "samples": 1, "add": 0, **(params or {})}
        return Request(settings, None if model_input is None else np.asarray(model_input))

    def answer(self, requests: Sequence[Request]) -> list[Any]:
        pictures = [np.zeros(1, int) if request.pictures is None else request.pictures for request in requests]
        self.passes.append([int(number) for part in pictures for number in part])
        self.begun.release()
        assert self.may_begin.wait(SECONDS)
        if any(13 in part for part in pictures):
            raise MemoryError(f"too much for {len(requests)}")
        return [part + request.settings["add"] for part, request in zip(pictures, requests, strict=True)]


def test_what_comes_while_a_pass_is_made_shares_the_next_ones() -> None:
    model, seen = Model(), []
    together = Together(model, 4, lambda images, task: seen.append((images, task)))
    with ThreadPoolExecutor(16) as threads:
        first = threads.submit(together.predict, [0])
        assert model.begun.acquire(timeout=SECONDS)
        later = []
        for number, given in enumerate([{}, {"add": 100}, {}, {"add": 100}, {}, {}]):
            later.append(threads.submit(together.predict, [10 * number, 10 * number + 1], given))
            wait_until(lambda number=number: len(together._waiting) == number + 1)
        model.may_begin.set()
        assert first.result(SECONDS).tolist() == [0]
        answers = [answer.result(SECONDS).tolist() for answer in later]
    assert answers == [[0, 1], [110, 111], [20, 21], [130, 131], [40, 41], [50, 51]]
    # By parameters, four images at most, and in their order.
    assert model.passes == [[0], [0, 1, 20, 21], [10, 11, 30, 31], [40, 41, 50, 51]]
    assert seen == [(1, "features"), (4, "features"), (4, "features"), (4, "features")]


def test_a_request_larger_than_a_pass_has_one_of_its_own() -> None:
    model = Model()
    model.may_begin.set()
    assert Together(model, 2, lambda *_: None).predict([1, 2, 3]).tolist() == [1, 2, 3]


def test_without_batches_every_request_has_a_pass() -> None:
    model = Model()
    together = Together(model, 1, lambda *_: None)
    with ThreadPoolExecutor(8) as threads:
        answers = [threads.submit(together.predict, [number]) for number in range(8)]
        model.may_begin.set()
        assert [answer.result(SECONDS).tolist() for answer in answers] == [[number] for number in range(8)]
    assert sorted(model.passes) == [[number] for number in range(8)]


def test_an_error_is_that_of_its_request_alone() -> None:
    model = Model()
    together = Together(model, 8, lambda *_: None)
    with ThreadPoolExecutor(8) as threads:
        blocking = threads.submit(together.predict, None)
        assert model.begun.acquire(timeout=SECONDS)
        answers = [threads.submit(together.predict, given) for given in ([1], [13], [2], "bad")]
        wait_until(lambda: len(together._waiting) == 3)
        model.may_begin.set()
        assert blocking.result(SECONDS).tolist() == [0]
        assert answers[0].result(SECONDS).tolist() == [1] and answers[2].result(SECONDS).tolist() == [2]
        with pytest.raises(MemoryError, match="too much for 1"):
            answers[1].result(SECONDS)
        with pytest.raises(ValueError, match="not a number"):
            answers[3].result(SECONDS)


def test_a_model_that_answers_one_request_at_a_time_is_never_asked_by_two_threads_at_once() -> None:
    busy = threading.Lock()

    class Older:
        def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> Any:
            assert busy.acquire(blocking=False)
            try:
                return model_input + (params or {})["add"]
            finally:
                busy.release()

    together = Together(Older(), 8, lambda *_: None)
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda number: together.predict(number, {"add": 1}), range(50))) == list(range(1, 51))
