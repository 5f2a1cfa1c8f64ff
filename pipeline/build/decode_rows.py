"""Read and decode rows of a listing within a task: one at a time, with a limit for a decoder that hangs."""

import faulthandler
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import PIL
import pyarrow as pa

from pipeline.config import DatasetConfig
from pipeline.dataset.decoding import Rule
from pipeline.images import decode
from pipeline.images.decode import Pictures
from pipeline.images.isolation import IsolatedDecoder
from pipeline.images.rejection import Rejection
from pipeline.source.raw_reads import read_images


def current_rule() -> Rule:
    """The rule by which this process decodes images."""
    return Rule(rule=decode.DECODING_RULE, pillow=".".join(PIL.__version__.split(".")[:2]))


class Stopwatch:
    """Adds up the time of the steps between its laps, in seconds by step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._since = time.perf_counter()

    def lap(self, step: str) -> None:
        now = time.perf_counter()
        self.seconds[step] += now - self._since
        self._since = now


class _Watchdog:
    """Ends this process when `feed` is not called for too long: nothing else stops a decoder that hangs.

    The task is then retried with its decoder in a child process. A context manager.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._armed = 0.0

    def __enter__(self) -> "_Watchdog":
        return self

    def __exit__(self, *_: object) -> None:
        faulthandler.cancel_dump_traceback_later()

    def feed(self) -> None:
        """Restart the timer; not for every image, because that starts a thread."""
        now = time.monotonic()
        if now - self._armed > self._seconds / 4:
            faulthandler.dump_traceback_later(1.25 * self._seconds, exit=True)
            self._armed = now


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """The outcome of decoding one row of a listing."""

    row: int
    outcome: Pictures | Rejection
    sha256: str
    """Of the raw bytes, in hex; empty if they could not be read."""


def decode_rows(
    listing: pa.Table,
    config: DatasetConfig,
    split: str,
    *,
    tolerant: bool,
    isolated: bool,
    stopwatch: Stopwatch | None = None,
) -> Iterator[Decoded]:
    """Read and decode the rows of a listing, sorted by their position in storage.

    Raises SourceChangedError for an image that changed since it was listed, unless `tolerant`.
    """
    stopwatch = stopwatch or Stopwatch()
    recipe = config.recipe(split)
    keys = listing["key"].to_pylist()
    with ExitStack() as stack:
        isolator = stack.enter_context(IsolatedDecoder(recipe, config.max_seconds)) if isolated else None
        watchdog = None if isolated else stack.enter_context(_Watchdog(config.max_seconds))
        for image in read_images(listing, tolerant=tolerant):
            stopwatch.lap("read")
            if image.rejection is not None:
                yield Decoded(row=image.row, outcome=image.rejection, sha256="")
                continue
            outcome: Pictures | Rejection
            if isolator is not None:
                outcome = isolator.decode(image.data, keys[image.row])
            else:
                assert watchdog is not None
                watchdog.feed()
                outcome = decode.decode(image.data, recipe, keys[image.row])
            stopwatch.lap("decode")
            yield Decoded(row=image.row, outcome=outcome, sha256=image.sha256)
