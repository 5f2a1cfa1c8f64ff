"""Workers of a node are forked from a process with the libraries, and differ from workers in new processes by nothing.

Ray itself is not started: a shell takes the part of the node, a small program that of Ray's worker.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pipeline.cluster import setup_worker
from tests.rigs.waiting import wait_until

pytestmark = [
    pytest.mark.programs,
    pytest.mark.skipif(sys.platform != "linux", reason="Ray's workers are forked on Linux only"),
]

# Tells how it was started. Its parent is the server where it was forked.
WORKER = """
import json, os, random, signal, sys
loaded = sorted({name.partition(".")[0] for name in sys.modules})
import numpy, torch
print(json.dumps({
    "pid": os.getpid(), "parent": os.getppid(), "loaded": loaded, "arguments": sys.argv, "folder": os.getcwd(),
    "variables": dict(os.environ), "numbers": [random.random(), numpy.random.rand()],
    "threads": torch.get_num_threads(), "group": os.getpgrp(), "name": __name__, "first": sys.path[0],
    "files": sorted(os.readlink(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd") if int(n) > 2
                    and os.path.exists(f"/proc/self/fd/{n}")),
    "deaf": signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN,
}))
print("to standard error", file=sys.stderr)
"""
# Ray starts each worker's program in a process group of its own.
IN_A_GROUP = "import os, sys; os.setpgid(0, 0); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"


class Node:
    """A process that starts workers as a Ray node does."""

    def __init__(self, folder: Path, variables: dict[str, str]) -> None:
        self.folder = folder
        self.program = folder / "default_worker.py"
        self.program.write_text(WORKER)
        self.shell = subprocess.Popen(
            ["bash"], stdin=subprocess.PIPE, text=True, cwd=folder, env={**os.environ, **variables}
        )
        self.count = 0

    def start(self, context: dict | None = None, program: Path | None = None, before: str = "") -> Path:
        """Start a worker in a runtime environment; returns the file of its output."""
        self.count += 1
        out = self.folder / f"{self.count}.out"
        arguments = [
            setup_worker.__file__, str(program or self.program), f"--raylet-name={self.folder}/raylet", "--more=a b",
            "--language=PYTHON", f"--serialized-runtime-env-context={json.dumps(context or {})}",
        ]  # fmt: skip
        command = " ".join(f"'{argument}'" for argument in [sys.executable, "-SEc", IN_A_GROUP, *arguments])
        assert self.shell.stdin is not None
        self.shell.stdin.write(f"{before} {command} > {out} 2> {out}.err &\n")
        self.shell.stdin.flush()
        return out

    def answer(self, out: Path) -> dict:
        """What a worker has told."""
        error = Path(f"{out}.err")
        wait_until(lambda: error.exists() and "to standard error" in error.read_text(), seconds=120)
        return json.loads(out.read_text())

    def run(self, context: dict | None = None, before: str = "") -> dict:
        """Start a worker and wait for what it tells."""
        return self.answer(self.start(context, before=before))

    def end(self) -> None:
        """End like a node that is killed."""
        self.shell.kill()
        self.shell.wait()


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    node = Node(tmp_path_factory.mktemp("node"), {"OF_NODE": "1"})
    yield node
    node.end()


def test_workers_are_forks_of_one_child_of_the_node(node: Node) -> None:
    together = [node.start() for _ in range(3)]
    answers = [node.answer(out) for out in together]
    (server,) = {answer["parent"] for answer in answers}
    assert psutil.Process(server).ppid() == node.shell.pid
    # Ray ends the group of a worker's program with the worker: it must not have the server, nor another worker.
    assert os.getpgid(server) == os.getpgid(node.shell.pid)
    assert len({answer["pid"] for answer in answers}) == len({answer["group"] for answer in answers}) == 3
    assert not {server, os.getpgid(server)} & {answer["group"] for answer in answers if answer["group"] != server}
    for answer in answers:
        assert {"torch", "numpy", "pandas", "s3fs"} <= set(answer["loaded"])
        # Of this project, of which a node would keep an old state; of Ray there is what reads the variables.
        assert not {"pipeline", "igpt_model", "flows"} & set(answer["loaded"])


def test_the_server_loads_nothing_of_ray() -> None:
    # Ray's random ids would be the same in all forks.
    code = f"import sys, {', '.join(setup_worker.LIBRARIES)}; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_fork_is_like_a_new_process(node: Node) -> None:
    first, second = node.run(), node.run()
    assert not set(first["numbers"]) & set(second["numbers"])
    assert first["arguments"] == [str(node.program), f"--raylet-name={node.folder}/raylet", "--more=a b"]
    assert first["name"] == "__main__" and first["first"] == str(node.folder)
    assert first["folder"] == str(node.folder) and first["threads"] == 1 and not first["deaf"]
    assert not [file for file in first["files"] if "raylet" in file or "socket" in file or "pidfd" in file]


def test_variables_are_those_of_the_node_and_of_the_runtime_environment(node: Node) -> None:
    changed = node.run({"env_vars": {"OF_JOB": "2", "LIST": "x:${OF_NODE}"}}, before="OF_WORKER=3")["variables"]
    assert {"OF_NODE": "1", "OF_JOB": "2", "LIST": "x:1", "OF_WORKER": "3"}.items() <= changed.items()
    later = node.run()["variables"]
    assert later["OF_NODE"] == "1" and not {"OF_JOB", "LIST", "OF_WORKER"} & later.keys()
    assert changed.get("OMP_NUM_THREADS") == later.get("OMP_NUM_THREADS") == os.environ.get("OMP_NUM_THREADS")


def test_a_killed_server_is_replaced(node: Node) -> None:
    server = node.run()["parent"]
    os.kill(server, signal.SIGKILL)
    assert node.run()["parent"] != server


def test_the_server_ends_with_its_node(tmp_path: Path) -> None:
    node = Node(tmp_path, {})
    server = psutil.Process(node.run()["parent"])
    node.end()
    server.wait(timeout=60)


@pytest.mark.parametrize(
    "context",
    [{"py_executable": "/other/python"}, {"command_prefix": ["nice"]}, {"override_worker_entrypoint": "/w.py"}],
    ids=str,
)
def test_a_runtime_environment_with_a_python_of_its_own_gets_a_new_process(context: dict) -> None:
    program = ["/ray/default_worker.py", "--raylet-name=/r"]
    serialized = "--serialized-runtime-env-context=" + json.dumps(context)
    assert setup_worker.read([*program, "--language=PYTHON", serialized]) is None
    assert setup_worker.read([*program, "--language=PYTHON"]) is not None


def test_other_programs_of_ray_get_a_new_process() -> None:
    assert setup_worker.read(["-m", "ray.util.client.server", "--address=a"]) is None


def test_without_a_library_workers_start_in_new_processes(tmp_path: Path) -> None:
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "obstore.py").write_text("raise ImportError('not on this node')")
    node = Node(tmp_path, {"PYTHONPATH": str(tmp_path / "modules")})
    answer = node.run()
    assert "pandas" not in answer["loaded"] and answer["arguments"][0] == str(node.program)
    node.end()
