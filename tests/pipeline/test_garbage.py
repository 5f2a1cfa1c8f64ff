"""Reference cycles are collected after more new objects than by default, and they are collected."""

import subprocess
import sys

import pytest

from tests.test_architecture import ROOT

CYCLE = """
import gc, weakref
class Cycle: pass
gc.collect()
cycle = Cycle()
cycle.own = cycle
seen = weakref.ref(cycle)
del cycle
kept = [[] for _ in range(20_000)]
print(seen() is not None)
kept += [[] for _ in range(20_000)]
print(seen() is None)
"""


@pytest.mark.parametrize(
    "program",
    [
        "from pipeline.garbage import collect_less_often as begin",
        "from pipeline.cluster.tasks import worker_setup; begin = worker_setup('')",
    ],
)
def test_a_cycle_is_collected_after_25000_new_objects(program: str) -> None:
    command = [sys.executable, "-c", f"{program}\nbegin()\n{CYCLE}"]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert ran.stdout == "True\nTrue\n"
