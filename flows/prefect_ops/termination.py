"""SIGTERM, by which Prefect cancels a run, inside a flow that waits for Ray."""

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from prefect.exceptions import TerminationSignal

# So long the exception of Prefect's handler may take to come out of what the main thread does.
_PATIENCE_SECONDS = 1.0
# What ends in answer to the interrupt may take so long until it is interrupted again.
_AGAIN_SECONDS = 20.0


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM end the block soon, though it waits for Ray, as the exception that Prefect's engine understands.

    Prefect takes a SIGTERM for a cancellation only while its own handler is in place, which raises that exception. But
    Ray lets KeyboardInterrupt alone out of its waits: any other stays until the wait is over, twenty seconds for a task
    of twenty seconds, and is then a SystemError (measured with 2.60). So a thread hears of the signal, too, and sends
    another that raises KeyboardInterrupt: not SIGINT, for which Ray Train has a handler written in Python, which does
    not get to run while the first exception waits.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    told, ended = threading.Event(), threading.Event()
    ear, mouth = socket.socketpair()
    mouth.setblocking(False)
    interrupt = signal.signal(signal.SIGUSR1, signal.default_int_handler)
    before = signal.set_wakeup_fd(mouth.fileno(), warn_on_full_buffer=False)  # written to when a signal arrives
    thread = threading.Thread(target=_listen, args=(ear, told, ended), daemon=True, name="termination")
    thread.start()
    try:
        yield
    except BaseException as error:
        if told.is_set() and not isinstance(error, TerminationSignal):
            raise TerminationSignal(signal.SIGTERM) from error
        raise
    finally:
        ended.set()
        signal.set_wakeup_fd(before)
        mouth.close()
        thread.join()
        ear.close()
        signal.signal(signal.SIGUSR1, interrupt)


def _listen(ear: socket.socket, told: threading.Event, ended: threading.Event) -> None:
    while signals := ear.recv(64):
        if signal.SIGTERM in signals:
            told.set()
            break
    wait = _PATIENCE_SECONDS
    while signals and not ended.wait(wait):
        if _is_waiting_for_ray():
            os.kill(os.getpid(), signal.SIGUSR1)
            wait = _AGAIN_SECONDS


def _is_waiting_for_ray() -> bool:
    """Whether the main thread is inside Ray: what else it does at its end is let finish."""
    main = threading.main_thread().ident
    frame = sys._current_frames().get(main) if main is not None else None
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if name == "ray" or name.startswith("ray."):
            return True
        if name.startswith(("flows.", "igpt_model.", "pipeline.")):
            return False
        frame = frame.f_back
    return False
