"""Hosts on one machine: they are isolated, can be lost and restored, and leave nothing behind."""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.rigs import hosts
from tests.rigs.fixtures import Rig
from tests.rigs.hosts import Network
from tests.rigs.ray_nodes import RayNodes
from tests.rigs.waiting import wait_until

pytestmark = [pytest.mark.services, pytest.mark.faults, pytest.mark.usefixtures("needs_hosts")]

ROOT = Path(__file__).parent.parent.parent
SLEEP = ["sh", "-c", "setsid sleep 600 & exec sleep 600"]  # a child, and a process in another session

# Runs tasks until a file appears, prints the address of the host of each, and at the end whether all tasks ended.
TASKS = """
import itertools, os, sys, time
from pipeline.cluster import tasks

def where(number):
    import psutil
    time.sleep(0.1)
    (address, *_) = [entry.address for entry in psutil.net_if_addrs()["eth0"]]
    return address

tasks.connect(os.environ["RAY_ADDRESS"])
calls = ((number,) for number in itertools.takewhile(lambda _: not os.path.exists(sys.argv[1]), itertools.count()))
ended = []
for number, address in tasks.map_tasks(where, calls):
    ended.append(number)
    print(address, flush=True)
print("complete" if sorted(ended) == list(range(len(ended))) else "incomplete")
"""


def runs(pid: int) -> bool:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def remains(tag: str) -> list[str]:
    """The namespaces, interfaces and files of a network that still exist."""
    listings = [
        subprocess.run(["ip", *arguments], capture_output=True, text=True, check=True).stdout.splitlines()
        for arguments in (["netns", "list"], ["-o", "link", "show"])
    ]
    files = [str(path) for folder in ("/tmp", "/run/igpt-hosts", "/run/netns") for path in Path(folder).iterdir()]
    return [line for line in [*listings[0], *listings[1], *files] if tag in line]


def test_hosts_reach_each_other_and_nothing_else() -> None:
    with Network() as network:
        one, other = network.add("one"), network.add("two")
        assert len({network.address, one.address, other.address}) == 3
        other.start([sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "8001"], {}, other.folder / "log")
        other.start([sys.executable, "-m", "http.server", "--bind", other.address, "8000"], {}, other.folder / "log")
        connect = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=2)"

        def reaches(address: str, port: int) -> bool:
            return one.run([sys.executable, "-c", connect, address, str(port)], {}).returncode == 0

        wait_until(lambda: reaches(other.address, 8000))
        assert not reaches("127.0.0.1", 8001)  # each host has its own loopback
        assert not reaches("192.0.2.1", 80)
        assert "unreachable" in one.run([sys.executable, "-c", connect, "192.0.2.1", "80"], {}).stderr
        other.remove(kill=False)
        assert len(other.processes()) == 2
        assert not reaches(other.address, 8000)
        other.plug()
        wait_until(lambda: reaches(other.address, 8000))
        other.remove(unplug=False)
        assert other.processes() == []
        assert not reaches(other.address, 8000)


def test_a_process_sees_the_environment_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "somebody else's")
    with Network() as network:
        host = network.add("one")
        seen = json.loads(
            host.run(
                [sys.executable, "-c", "import json, os; print(json.dumps(dict(os.environ)))"], {"GIVEN": "1"}
            ).stdout
        )
    assert seen["GIVEN"] == "1"
    assert "AWS_SECRET_ACCESS_KEY" not in seen


def test_nothing_is_left_after_a_failure() -> None:
    with pytest.raises(ZeroDivisionError), Network() as network:
        host = network.add("one")
        host.start(SLEEP, {}, host.folder / "log")
        wait_until(lambda: len(host.processes()) == 2)
        pids = host.processes()
        assert remains(network.tag)
        raise ZeroDivisionError
    assert not any(runs(pid) for pid in pids)
    assert remains(network.tag) == []


def test_sweep_removes_the_network_of_a_killed_session_and_no_live_one() -> None:
    code = f"""
import sys, time
from tests.rigs.hosts import Network
with Network() as network:
    host = network.add("one")
    host.start({SLEEP!r}, {{}}, host.folder / "log")
    while len(host.processes()) < 2:
        time.sleep(0.01)
    print(network.tag, *host.processes(), flush=True)
    time.sleep(600)
"""
    with Network() as living:
        host = living.add("one")
        host.start(SLEEP, {}, host.folder / "log")
        dead = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert dead.stdout is not None
        tag, *pids = dead.stdout.readline().split()
        assert len(pids) == 2 and tag != living.tag
        hosts.sweep()
        assert all(runs(int(pid)) for pid in pids)
        os.kill(dead.pid, signal.SIGKILL)
        dead.wait()
        dead.stdout.close()
        assert remains(tag)
        hosts.sweep()
        assert not any(runs(int(pid)) for pid in pids)
        assert remains(tag) == []
        wait_until(lambda: len(host.processes()) == 2)
    assert remains(living.tag) == []


def test_without_root_there_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "root" in str(hosts.why_not.__wrapped__())


def test_s3_is_reached_from_every_host_through_the_proxy(rig: Rig) -> None:
    code = (
        "import s3fs, sys; fs = s3fs.S3FileSystem(); fs.pipe_file(sys.argv[1], b'x'); print(fs.cat_file(sys.argv[1]))"
    )
    before = rig.proxy.requests.copy()
    for host in rig.hosts:
        ended = host.run([sys.executable, "-c", code, f"raw/{host.address}"], rig.nodes.environment(host))
        assert ended.stdout == "b'x'\n", ended.stderr
        assert rig.proxy.requests[host.address, "PUT"] == before[host.address, "PUT"] + 1
        assert (rig.s3.bucket("raw") / host.address).read_bytes() == b"x"


def test_tasks_continue_without_a_lost_node_and_use_it_again_when_it_is_restored(rig: Rig, tmp_path: Path) -> None:
    head, _, victim = rig.hosts
    addresses = {host.address for host in rig.hosts}
    enough, log = tmp_path / "enough", tmp_path / "log"
    driver = head.start([sys.executable, "-c", TASKS, str(enough)], rig.nodes.environment(head), log)

    def places() -> list[str]:
        """The addresses at which tasks have run so far, without Ray's own output."""
        assert driver.poll() is None, log.read_text()
        return [line for line in log.read_text().splitlines() if line in addresses]

    wait_until(lambda: addresses <= set(places()))
    victim.remove()
    assert victim.processes() == []
    rig.nodes.wait_until_alive(rig.hosts[:2])
    noticed = len(places())
    wait_until(lambda: len(places()) > noticed + 20)
    assert victim.address not in places()[noticed + 6 :]  # up to six had ended there, but were not printed yet
    rig.nodes.heal()
    back = len(places())
    wait_until(lambda: addresses <= set(places()[back:]))
    enough.touch()
    assert driver.wait(timeout=60) == 0
    assert log.read_text().splitlines()[-1] == "complete"


def test_a_client_without_the_token_is_refused(rig: Rig) -> None:
    stranger = RayNodes(rig.hosts, {})
    assert stranger.address == rig.nodes.address
    with pytest.raises(RuntimeError, match="Unauthenticated"):
        stranger.wait_until_alive(rig.hosts, seconds=1)
