"""How many of PyTorch's threads a pass through a model uses in somebody else's program: as many as its work fills.

The threads of a layer wait for each other. Where other programs keep the cores busy, such a wait takes a time slice of
the operating system, several milliseconds, which for a small image is many times the work itself. (Measured on two busy
cores, an 8x8 image through four blocks of width 64: 16 ms with one thread, 1,200 ms with two; the blocks of a 32x32
image at width 512: 1.3 s and 1.6 s.)
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch

from igpt_model.model.config import ModelConfig

_FLOPS, _BYTES = 1e11, 1e10  # what one core computes, and what it reads, in a second
_SECONDS = 0.004  # of a block's work for every thread
_PROCESS = os.getpid()
_lock = threading.Lock()


@contextmanager
def threads_for(config: ModelConfig, *, images: int, positions: int) -> Iterator[None]:
    """Lower this thread's number of PyTorch threads to what passes of so many images and positions of each fill.

    `positions` is 1 where pixels are sampled one after another. Other threads keep their numbers, and this one has its
    own again afterwards.
    """
    fitting = max(1, int(_block_seconds(config, images, positions) / _SECONDS))
    if is_forked():
        yield
        return
    with _lock:
        before = torch.get_num_threads()
        if fitting < before:
            torch.set_num_threads(fitting)
            # This also became the number of threads that begin later. Only a thread can take it back without taking
            # back its own.
            restore = threading.Thread(target=torch.set_num_threads, args=(before,))
            with suppress(RuntimeError):  # at the end of a program none begins
                restore.start()
                restore.join()
    try:
        yield
    finally:
        if fitting < before:
            torch.set_num_threads(before)


def one_thread_if_forked() -> None:
    """Leave a forked process one thread for each pass: OpenMP's threads stay in its parent.

    Work that is divided among them would be waited for without end. PyTorch's DataLoader does the same.
    """
    if is_forked():
        torch.set_num_threads(1)


def is_forked() -> bool:
    """Whether this process was forked from the one that loaded this module."""
    return os.getpid() != _PROCESS


def _block_seconds(config: ModelConfig, images: int, positions: int) -> float:
    """What one core needs for one block of a model, by what it computes or what it reads."""
    keys_of_all = images * config.sequence
    multiply_adds = images * positions * config.width * (12 * config.width + 2 * config.sequence)
    floats = 12 * config.width**2 + 2 * keys_of_all * config.width
    return max(2 * multiply_adds / _FLOPS, 4 * floats / _BYTES)
