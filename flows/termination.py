"""SIGTERM, by which Prefect cancels a run, inside a flow that waits for Ray."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from prefect.exceptions import TerminationSignal


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM end the block at once, whatever it waits for, as the exception that Prefect's engine understands.

    Ray puts a handler of its own in the place of Prefect's when it connects, with which a cancelled run crashes; and it
    lets KeyboardInterrupt alone out of its waits: any other exception stays until the wait is over, twenty seconds for
    a task of twenty seconds, and is then a SystemError (measured with 2.60).
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    told = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal told
        told = True
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except KeyboardInterrupt as error:
        if told:
            raise TerminationSignal(signal.SIGTERM) from error
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
