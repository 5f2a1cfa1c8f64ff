"""The local Ray node forks its workers from a process that has the libraries."""

import sys

import pytest

from flows.services.local_stack import Stack
from tests.integration.conftest import ended, python

pytestmark = [
    pytest.mark.services,
    pytest.mark.skipif(sys.platform != "linux", reason="Ray's workers are forked on Linux only"),
]

# Prints the programs of the parent of a worker and of that one's parent.
ANCESTORS = """
import psutil, ray
from flows.services import cluster, settings
cluster.connect(settings.load().ray_address, "build")
def ancestors():
    return [" ".join(process.cmdline()) for process in psutil.Process().parents()]
for number, programs in cluster.tasks.map_tasks(ancestors, [(), ()]):
    print(*programs[:2], sep="\\n")
"""


def test_workers_are_forked_from_a_child_of_the_node(stack: Stack) -> None:
    said = ended(python(ANCESTORS))
    assert said.code == 0, said.err
    server, node, *others = said.out.splitlines()
    assert "pipeline/cluster/setup_worker.py --serve" in server and "raylet" in node
    assert others == [server, node]
