"""SIGTERM ends a block that waits for Ray at once, with the exception that Prefect's engine expects."""

import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[3]
# The process starts its own cluster, and sets a handler like Prefect's.
CODE = """
import os, signal, threading, time
import ray
from prefect.exceptions import TerminationSignal
from flows.prefect_ops.termination import terminable
ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
def terminate(number, frame):
    raise TerminationSignal(number)
signal.signal(signal.SIGTERM, terminate)
sleeping = ray.remote(lambda: time.sleep(300)).remote()
threading.Timer(1, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
began = time.monotonic()
try:
    with terminable():
        ray.wait([sleeping])
except TerminationSignal as error:
    print(error.signal == signal.SIGTERM, signal.getsignal(signal.SIGTERM) is terminate, time.monotonic() - began < 60)
"""


def test_sigterm_ends_a_wait_for_ray() -> None:
    began = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-c", CODE], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert ended.stdout.splitlines()[-1:] == ["True True True"], ended.stdout + ended.stderr
    assert time.monotonic() - began < 200, "it waited for the end of the task"
