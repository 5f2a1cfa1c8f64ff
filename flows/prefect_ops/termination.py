"""Let SIGTERM, with which Prefect cancels a run, interrupt a flow that waits for Ray."""

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from prefect.exceptions import TerminationSignal

# How long Prefect's exception may take to reach the main thread before it is interrupted.
_GRACE_SECONDS = 1.0
# How long the shutdown after an interrupt may take before the next interrupt.
_REPEAT_SECONDS = 20.0


@contextmanager
def terminable() -> Iterator[None]:
    """Make SIGTERM end the block soon with TerminationSignal, the exception of Prefect's engine, even in a Ray wait.

    Prefect's SIGTERM handler must stay in place, or Prefect does not count the signal as a cancellation; it raises
    TerminationSignal. But only KeyboardInterrupt interrupts a Ray wait. Any other exception is held back until the wait
    is over, 20 s for a task of 20 s, and is then a SystemError (measured with Ray 2.60). So a thread watches for the
    signal and sends the process SIGUSR1, whose handler raises KeyboardInterrupt. SIGINT does not work: Ray Train
    replaces its handler by one in Python, which cannot run while the first exception is pending.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    terminated, ended = threading.Event(), threading.Event()
    receiver, sender = socket.socketpair()
    sender.setblocking(False)
    previous_handler = signal.signal(signal.SIGUSR1, signal.default_int_handler)
    # Python writes the number of every signal that arrives to this socket.
    previous_fd = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
    thread = threading.Thread(
        target=_interrupt_ray, args=(receiver, terminated, ended), daemon=True, name="termination"
    )
    thread.start()
    try:
        yield
    except BaseException as error:
        if terminated.is_set() and not isinstance(error, TerminationSignal):
            raise TerminationSignal(signal.SIGTERM) from error
        raise
    finally:
        ended.set()
        signal.set_wakeup_fd(previous_fd)
        sender.close()
        thread.join()
        receiver.close()
        signal.signal(signal.SIGUSR1, previous_handler)


def _interrupt_ray(receiver: socket.socket, terminated: threading.Event, ended: threading.Event) -> None:
    """Wait for SIGTERM, then interrupt the main thread's Ray waits until the block has ended."""
    while signals := receiver.recv(64):
        if signal.SIGTERM in signals:
            terminated.set()
            break
    wait = _GRACE_SECONDS
    while signals and not ended.wait(wait):
        if _is_waiting_for_ray():
            os.kill(os.getpid(), signal.SIGUSR1)
            wait = _REPEAT_SECONDS


def _is_waiting_for_ray() -> bool:
    """Whether the main thread is inside Ray; other shutdown work may finish."""
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
