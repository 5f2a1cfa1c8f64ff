"""The number of threads follows the work, for the calling thread alone, and is as before afterwards."""

import multiprocessing
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from igpt_model.inference import threads
from igpt_model.inference.threads import one_thread_if_forked, threads_for
from igpt_model.model.config import ModelConfig
from tests.igpt_model.registry.test_serving import make

TINY = ModelConfig(layers=4, width=64, heads=4, resolution=8, colours=16)
IGPT_S = ModelConfig(layers=24, width=512, heads=8, resolution=32, colours=512)


@pytest.fixture(autouse=True)
def four_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def in_a_thread(function: Callable[[], Any]) -> Any:
    """The result of a function in a thread that begins now."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join()
    return results[0]


@pytest.mark.parametrize(
    ("config", "images", "positions", "expected"),
    [
        (TINY, 1, 64, 1),
        (TINY, 16, 64, 1),
        (TINY, 1, 1, 1),
        (TINY, 32, 1, 1),
        (TINY, 1000, 64, 4),
        (IGPT_S, 1, 1024, 4),
        (IGPT_S, 1, 1, 1),
        (IGPT_S, 64, 1, 4),
    ],
)
def test_the_number_follows_the_work(config: ModelConfig, images: int, positions: int, expected: int) -> None:
    with threads_for(config, images=images, positions=positions):
        assert torch.get_num_threads() == expected
        assert in_a_thread(torch.get_num_threads) == 4, "other threads keep theirs"
    assert torch.get_num_threads() == in_a_thread(torch.get_num_threads) == 4


def test_it_is_never_raised() -> None:
    torch.set_num_threads(1)
    with threads_for(IGPT_S, images=128, positions=1024):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 1


def test_it_is_as_before_after_an_error() -> None:
    with pytest.raises(KeyError), threads_for(TINY, images=1, positions=64):
        raise KeyError
    assert torch.get_num_threads() == in_a_thread(torch.get_num_threads) == 4


def test_many_threads_at_once_each_have_it_and_leave_it_as_it_was() -> None:
    def work(_: int) -> tuple[int, int]:
        with threads_for(TINY, images=1, positions=64):
            within = torch.get_num_threads()
        return within, torch.get_num_threads()

    for _ in range(5):  # new threads each time
        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(work, range(40))) == {(1, 4)}
    assert torch.get_num_threads() == in_a_thread(torch.get_num_threads) == 4


def test_a_forked_process_has_one_thread_for_good() -> None:
    def work(results: Any) -> None:
        one_thread_if_forked()
        with threads_for(IGPT_S, images=64, positions=1024):
            within = torch.get_num_threads()
            (torch.randn(700, 700) @ torch.randn(700, 700)).exp().sum()  # hangs with more
        results.put((threads.is_forked(), within, torch.get_num_threads()))

    (torch.randn(700, 700) @ torch.randn(700, 700)).exp().sum()  # the threads of this process are in use
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    process = context.Process(target=work, args=(results,))
    process.start()
    assert results.get(timeout=60) == (True, 1, 1)
    process.join()
    one_thread_if_forked()
    assert torch.get_num_threads() == 4 and not threads.is_forked()


@pytest.mark.parametrize("task", ["features", "classify", "score", "complete", "sample"])
def test_a_small_image_has_one_thread_in_every_task(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, numbers = make(), []
    model._bundle.model.register_forward_pre_hook(lambda *_: numbers.append(torch.get_num_threads()))
    norm = model._bundle.model.layers[0].attention_norm
    norm.register_forward_pre_hook(lambda *_: numbers.append(torch.get_num_threads()))
    monkeypatch.setattr("igpt_model.model.linear.PackedLinear.suits", staticmethod(lambda weight: False))
    model.predict(np.zeros((1, 8, 8, 3), np.uint8), {"task": task})
    assert numbers and set(numbers) == {1}
    assert torch.get_num_threads() == 4
