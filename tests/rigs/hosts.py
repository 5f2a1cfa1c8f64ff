"""Several hosts on one machine: network namespaces with addresses of their own, cabled to one switch.

For root on Linux with iproute2; `why_not` tells what is missing. Everything that a network makes carries its tag, and a
process belongs to the host in whose namespace it runs, so nothing is ever ended that was not started here.
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
# Root's own folder. A session holds the lock of its file here as long as it lives; the kernel frees it in any case.
_SESSIONS = Path("/run/igpt-hosts")
_HOSTS_FILES = Path("/etc/netns")  # `ip netns exec` lays the files in a namespace's folder here over those of /etc
_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_SWITCH = "sw"
_KILL_SECONDS = 10


class Host:
    """A host: a namespace with one cabled interface, a folder, and the processes that run in it."""

    def __init__(self, *, namespace: str, switch: str, port: str, address: str, folder: Path) -> None:
        self.namespace = namespace
        self.address = address
        self.folder = folder
        """Its own files, under a path short enough for Ray's sockets; HOME of its processes."""
        self.is_lost = False
        """Whether it was removed and is not plugged in yet."""
        self._switch = switch
        self._port = port
        self._children: list[subprocess.Popen[bytes]] = []

    def start(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
        """Start a command in a process session of its own; what it prints is appended to the log.

        It sees the given variables, PATH and HOME, and nothing of this process's environment.
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
        """Run a command to its end; otherwise as `start`, with what it prints in the result."""
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
        """The ids of all processes that run in it, whoever started them."""
        return _processes(self.namespace)

    def remove(self, *, unplug: bool = True, kill: bool = True) -> None:
        """Take it away abruptly: pull its cable, then kill its processes, unheard by others; or only one of them."""
        self.is_lost = True
        if unplug:
            _ip("-n", self._switch, "link", "set", self._port, "down")
        if kill:
            self.kill()

    def plug(self) -> None:
        """Put its cable back."""
        _ip("-n", self._switch, "link", "set", self._port, "up")
        self.is_lost = False

    def kill(self) -> None:
        """End all of its processes with SIGKILL."""
        _kill(self.namespace)
        for child in self._children:
            child.wait(timeout=_KILL_SECONDS)
        self._children.clear()


class Network:
    """Hosts on one switch, to which this machine is cabled too; gone with all their processes when the context ends."""

    def __init__(self) -> None:
        self.hosts: list[Host] = []

    def __enter__(self) -> Self:
        sweep()
        with _exclusively():
            # Under the lock, so that no other session chooses the same range, or sweeps what is half made.
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
        """Add a host; its label is at most 4 characters and goes into its names."""
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
        self._cable(label, namespace=host.namespace, interface="eth0", address=host.address)
        _ip("-n", host.namespace, "link", "set", "lo", "up")
        return host

    def name(self, names: Mapping[str, Host]) -> None:
        """Let the hosts be found by names, as the containers of a network are; to be called before anything runs.

        Each host also gets a way out through this machine, which leads nowhere: programs that look which address a
        connection to the internet would come from find the host's own.
        """
        lines = ["127.0.0.1 localhost", *(f"{host.address} {name}" for name, host in names.items())]
        for host in self.hosts:
            folder = _HOSTS_FILES / host.namespace
            folder.mkdir(parents=True, exist_ok=True)
            own = f"{host.address} {socket.gethostname()}"  # the machine's name, by which a program finds itself
            (folder / "hosts").write_text("\n".join([*lines, own, ""]))
            (folder / "resolv.conf").write_text("nameserver 127.0.0.1\n")  # nobody is there, and that is known at once
            _ip("-n", host.namespace, "route", "add", "default", "via", self.address)

    def _make_switch(self) -> None:
        self.folder = _folder(self.tag)
        self.folder.mkdir(mode=0o700)
        self._range = _free_range()
        self.address = str(self._range[1])
        """This machine's address on the switch; what shall be reached from the hosts listens there."""
        # The bridge has a namespace of its own too: the machine's firewall has no say in what passes it.
        self._switch = f"{self.tag}-{_SWITCH}"
        _ip("netns", "add", self._switch)
        _ip("-n", self._switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", self._switch, "link", "set", "bridge", "up")
        self._cable("here", namespace=None, interface=self.tag, address=self.address)

    def _cable(self, port: str, *, namespace: str | None, interface: str, address: str) -> None:
        """Lay a cable from a port of the switch to an interface of a namespace; None is that of this process."""
        here = ("-n", namespace) if namespace is not None else ()
        _ip(*here, "link", "add", interface, "type", "veth", "peer", "name", port, "netns", self._switch)
        _ip("-n", self._switch, "link", "set", port, "master", "bridge", "up")
        _ip(*here, "address", "add", f"{address}/{self._range.prefixlen}", "dev", interface)
        _ip(*here, "link", "set", interface, "up")

    def _remove(self) -> None:
        for host in self.hosts:
            host.kill()
        _remove(self.tag)
        self._session.close()


@functools.cache
def why_not() -> str | None:
    """Why hosts cannot be made here, in a line; None when they can."""
    if sys.platform != "linux":
        return "platform: network namespaces are Linux's"
    if os.geteuid() != 0:
        return "network namespaces need root: run the tests as root"
    if shutil.which("ip", path=_SYSTEM_PATH) is None:
        return "network namespaces need the program ip: on Debian install iproute2"
    try:
        with Network() as network:
            tried = network.add("try").run(["true"], {})
    except (OSError, RuntimeError) as error:
        return f"network namespaces cannot be made: {error}"
    return None if tried.returncode == 0 else f"nothing can be run in a network namespace: {tried.stderr.strip()}"


def sweep() -> None:
    """Remove what sessions left that are dead; nothing of those that live."""
    _SESSIONS.mkdir(mode=0o700, exist_ok=True)
    with _exclusively():
        for tag in _tags():
            with suppress(BlockingIOError):
                session = _hold_session(tag)
                _remove(tag)
                session.close()


def _tags() -> set[str]:
    """The tags of all networks of which anything is left."""
    left = "\n".join([_ip("netns", "list"), _ip("-o", "link", "show"), *(path.name for path in _SESSIONS.iterdir())])
    return set(_TAG.findall(left))


def _hold_session(tag: str) -> IO[bytes]:
    """Hold the lock that says that the session of a network lives. Raises BlockingIOError when somebody holds it."""
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
    # The cables first: those of a deleted namespace go some time later.
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
    """End every process of a namespace, also those that are started meanwhile."""
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

    Of 198.18.0.0/15, which is set aside for tests of networks (RFC 2544): no real network has it.
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
    """Run `ip`. Raises RuntimeError with its complaint."""
    done = subprocess.run([_program(), *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


@contextmanager
def _exclusively() -> Iterator[None]:
    with (_SESSIONS / "lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
