"""Several hosts on one machine: network namespaces with their own addresses, connected to one switch.

For root on Linux with iproute2; `why_not` returns what is missing. Everything that a network creates carries its tag,
and a process belongs to the host in whose namespace it runs, so only processes started here are ended.
"""

import fcntl
import functools
import ipaddress
import json
import os
import random
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Self

_PREFIX = "igpt"
_TAG = re.compile(rf"\b{_PREFIX}[0-9a-f]{{6}}\b")
# A live session holds a lock on its file here; the kernel releases it when the session ends for any reason.
_SESSIONS = Path("/run/igpt-hosts")
_HOSTS_FILES = Path("/etc/netns")  # `ip netns exec` mounts the files of a namespace's folder here over those of /etc
_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_SWITCH = "sw"
_KILL_SECONDS = 10


class Host:
    """A host: a namespace with one connected interface, a folder, and its processes."""

    def __init__(self, *, namespace: str, switch: str, port: str, address: str, folder: Path) -> None:
        self.namespace = namespace
        self.address = address
        self.folder = folder
        """Its files, and the HOME of its processes, at a path short enough for Ray's sockets."""
        self.is_lost = False
        """Whether it was removed and not connected again."""
        self._switch = switch
        self._port = port
        self._children: list[subprocess.Popen[bytes]] = []

    def start(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
        """Start a command in its own process session; its output is appended to the log.

        Its environment has the given variables, PATH and HOME, and nothing of this process's environment.
        """
        with log.open("ab") as file:
            child = subprocess.Popen(
                [*_inside(self.namespace), *command],
                env=self._environment(environment),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._children.append(child)
        return child

    def run(
        self, command: Sequence[str], environment: Mapping[str, str], *, seconds: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Like `start`, but wait for the end of the command; the result has its output."""
        return subprocess.run(
            [*_inside(self.namespace), *command],
            env=self._environment(environment),
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
            start_new_session=True,
        )

    def _environment(self, variables: Mapping[str, str]) -> dict[str, str]:
        path = f"{Path(sys.executable).parent}:{_SYSTEM_PATH}"
        return {"PATH": path, "HOME": str(self.folder), "LANG": "C.UTF-8", **variables}

    def processes(self) -> list[int]:
        """The ids of all processes that run in its namespace."""
        return _processes(self.namespace)

    def remove(self, *, unplug: bool = True, kill: bool = True) -> None:
        """Lose the host: disconnect it, then kill its processes, so that no other host notices; or only one of both."""
        self.is_lost = True
        if unplug:
            _ip("-n", self._switch, "link", "set", self._port, "down")
        if kill:
            self.kill()

    def plug(self) -> None:
        """Connect it again."""
        _ip("-n", self._switch, "link", "set", self._port, "up")
        self.is_lost = False

    def kill(self) -> None:
        """Kill all its processes."""
        _kill(self.namespace)
        for child in self._children:
            child.wait(timeout=_KILL_SECONDS)
        self._children.clear()


class Network:
    """Hosts on one switch, which this machine is connected to as well; all are removed when the context ends."""

    def __init__(self) -> None:
        self.hosts: list[Host] = []

    def __enter__(self) -> Self:
        sweep()
        with _exclusively():
            # Under the lock, so that no other session chooses the same range, or removes an unfinished network.
            self.tag = f"{_PREFIX}{secrets.token_hex(3)}"
            self._session = _hold_session(self.tag)
            try:
                self._make_switch()
            except BaseException:
                self._remove()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with _exclusively():
            self._remove()

    def add(self, label: str) -> Host:
        """Add a host; its label, of at most 4 characters, is part of its namespace's name."""
        host = Host(
            namespace=f"{self.tag}-{label}",
            switch=self._switch,
            port=label,
            address=str(self._range[11 + len(self.hosts)]),
            folder=self.folder / label,
        )
        host.folder.mkdir()
        _ip("netns", "add", host.namespace)
        self.hosts.append(host)
        self._connect(label, namespace=host.namespace, interface="eth0", address=host.address)
        _ip("-n", host.namespace, "link", "set", "lo", "up")
        return host

    def name(self, names: Mapping[str, Host]) -> None:
        """Give the hosts names, like the containers of a network; to be called before anything runs.

        Each host also gets a default route through this machine, which leads nowhere: programs that look up the source
        address of a connection to the internet then find the host's own.
        """
        lines = ["127.0.0.1 localhost", *(f"{host.address} {name}" for name, host in names.items())]
        for host in self.hosts:
            folder = _HOSTS_FILES / host.namespace
            folder.mkdir(parents=True, exist_ok=True)
            own = f"{host.address} {socket.gethostname()}"  # programs look up their own address by the machine's name
            (folder / "hosts").write_text("\n".join([*lines, own, ""]))
            (folder / "resolv.conf").write_text("nameserver 127.0.0.1\n")  # refuses at once, instead of a timeout
            _ip("-n", host.namespace, "route", "add", "default", "via", self.address)

    def _make_switch(self) -> None:
        self.folder = _folder(self.tag)
        self.folder.mkdir(mode=0o700)
        self._range = _free_range()
        self.address = str(self._range[1])
        """This machine's address on the switch; servers for the hosts listen on it."""
        # The bridge has its own namespace, so that the machine's firewall does not filter its traffic.
        self._switch = f"{self.tag}-{_SWITCH}"
        _ip("netns", "add", self._switch)
        _ip("-n", self._switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", self._switch, "link", "set", "bridge", "up")
        self._connect("here", namespace=None, interface=self.tag, address=self.address)

    def _connect(self, port: str, *, namespace: str | None, interface: str, address: str) -> None:
        """Connect a port of the switch to a new interface of a namespace; None is that of this process."""
        inside = [] if namespace is None else ["-n", namespace]
        _ip(*inside, "link", "add", interface, "type", "veth", "peer", "name", port, "netns", self._switch)
        _ip("-n", self._switch, "link", "set", port, "master", "bridge", "up")
        _ip(*inside, "address", "add", f"{address}/{self._range.prefixlen}", "dev", interface)
        _ip(*inside, "link", "set", interface, "up")

    def _remove(self) -> None:
        for host in self.hosts:
            host.kill()
        _remove(self.tag)
        self._session.close()


@functools.cache
def why_not() -> str | None:
    """Why hosts cannot be created here, in one line; None if they can."""
    if sys.platform != "linux":
        return "platform: network namespaces are Linux's"
    if os.geteuid() != 0:
        return "network namespaces need root: run the tests as root"
    if shutil.which("ip", path=_SYSTEM_PATH) is None:
        return "network namespaces need the program ip: on Debian install iproute2"
    try:
        with Network() as network:
            result = network.add("try").run(["true"], {})
    except (OSError, RuntimeError) as error:
        return f"network namespaces cannot be created: {error}"
    return None if result.returncode == 0 else f"nothing can be run in a network namespace: {result.stderr.strip()}"


def sweep() -> None:
    """Remove the networks of dead sessions, and none of live ones."""
    _SESSIONS.mkdir(mode=0o700, exist_ok=True)
    with _exclusively():
        for tag in _tags():
            with suppress(BlockingIOError):
                session = _hold_session(tag)
                _remove(tag)
                session.close()


def _tags() -> set[str]:
    """The tags of all networks that have a namespace, an interface or a lock file."""
    sessions = [path.name for path in _SESSIONS.iterdir()]
    return set(_TAG.findall("\n".join([_ip("netns", "list"), _ip("-o", "link", "show"), *sessions])))


def _hold_session(tag: str) -> IO[bytes]:
    """Hold the lock that marks the session of a network as alive. Raises BlockingIOError if a process holds it."""
    file = (_SESSIONS / tag).open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        file.close()
        raise
    return file


def _remove(tag: str) -> None:
    namespaces = [line.split()[0] for line in _ip("netns", "list").splitlines() if line.startswith(f"{tag}-")]
    for name in namespaces:
        _kill(name)
    # The interface first: those of a deleted namespace disappear some time later.
    if f" {tag}@" in _ip("-o", "link", "show"):
        _ip("link", "delete", tag)
    for name in namespaces:
        _ip("netns", "delete", name)
        shutil.rmtree(_HOSTS_FILES / name, ignore_errors=True)
    shutil.rmtree(_folder(tag), ignore_errors=True)
    (_SESSIONS / tag).unlink(missing_ok=True)


def _folder(tag: str) -> Path:
    return Path("/tmp") / tag


def _processes(namespace: str) -> list[int]:
    return [int(line) for line in _ip("netns", "pids", namespace).split()]


def _kill(namespace: str) -> None:
    """Kill every process of a namespace, including those that are started meanwhile."""
    deadline = time.monotonic() + _KILL_SECONDS
    while alive := _processes(namespace):
        for pid in alive:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise RuntimeError(f"processes {alive} of {namespace} do not end")
        time.sleep(0.02)


def _free_range() -> ipaddress.IPv4Network:
    """A range of addresses that no route of this machine touches.

    It is part of 198.18.0.0/15, which is reserved for network tests (RFC 2544).
    """
    routes = json.loads(_ip("-json", "-4", "route", "show", "table", "all"))
    taken = [ipaddress.ip_network(route["dst"], strict=False) for route in routes if route["dst"] != "default"]
    ranges = list(ipaddress.ip_network("198.18.0.0/15").subnets(new_prefix=24))
    random.shuffle(ranges)
    for candidate in ranges:
        if isinstance(candidate, ipaddress.IPv4Network) and not any(candidate.overlaps(other) for other in taken):
            return candidate
    raise RuntimeError("every range of 198.18.0.0/15 has a route already")


def _inside(namespace: str) -> list[str]:
    return [_program(), "netns", "exec", namespace]


def _program() -> str:
    return shutil.which("ip", path=_SYSTEM_PATH) or "ip"


def _ip(*arguments: str) -> str:
    """Run `ip`. Raises RuntimeError with its error message."""
    ended = subprocess.run([_program(), *arguments], capture_output=True, text=True, check=False)
    if ended.returncode != 0:
        raise RuntimeError(f"ip {' '.join(arguments)}: {ended.stderr.strip()}")
    return ended.stdout


@contextmanager
def _exclusively() -> Iterator[None]:
    with (_SESSIONS / "lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
