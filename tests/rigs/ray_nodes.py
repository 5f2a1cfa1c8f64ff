"""A Ray cluster on the hosts of a rig: one node per host, with token authentication and only the services tests use."""

import secrets
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.rigs.hosts import Host

_PORT = 6379
_START_SECONDS = 60
# An unreachable node counts as dead after three seconds; with Ray's defaults after a minute (63 s measured).
QUICK_TO_GIVE_UP = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}
# Waits until exactly the wanted nodes are alive, and prints those that are alive at the end.
_WAIT_FOR_NODES = """
import sys, time
from ray._raylet import GcsClient
client, wanted, seconds = GcsClient(address=sys.argv[1]), set(sys.argv[2].split(",")), float(sys.argv[3])
deadline = time.monotonic() + seconds
while True:
    nodes = client.get_all_node_info(timeout=10).values()
    alive = {node.node_manager_address for node in nodes if node.state == 0}
    if alive == wanted or time.monotonic() > deadline:
        break
    time.sleep(0.1)
print(*sorted(alive))
"""
# Announces that the node with an address will be preempted in so many seconds.
_DRAIN = """
import sys, time
from ray._raylet import GcsClient
from ray.core.generated import autoscaler_pb2
client, address, seconds = GcsClient(address=sys.argv[1]), sys.argv[2], float(sys.argv[3])
(node,) = [
    node.node_id
    for node in client.get_all_node_info(timeout=10).values()
    if node.state == 0 and node.node_manager_address == address
]
reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
accepted, why = client.drain_node(node.hex(), reason, "a rehearsal", int(1000 * (time.time() + seconds)))
sys.exit(0 if accepted else why)
"""


class RayNodes:
    """The cluster, with the head on the first host. Its nodes end with their hosts."""

    def __init__(
        self,
        hosts: Sequence[Host],
        environment: Mapping[str, str],
        *,
        cpus: int = 1,
        object_store_bytes: int = 150_000_000,
    ) -> None:
        """Describe a cluster with the CPUs and the object store of each node, and variables for its workers."""
        self.hosts = list(hosts)
        self.address = f"{hosts[0].address}:{_PORT}"
        self._variables = {
            **environment,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
            "RAY_API_SERVER_ADDRESS": "http://127.0.0.1:1",
            "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
            **QUICK_TO_GIVE_UP,
        }
        self._cpus = cpus
        self._object_store_bytes = object_store_bytes

    def environment(self, host: Host) -> dict[str, str]:
        """The variables with which a driver on a host connects to the cluster."""
        return {**self._variables, "RAY_ADDRESS": self.address, "RAY_TMPDIR": str(_temporary(host))}

    def start(self) -> None:
        """Start all nodes and wait until they are alive."""
        head, *others = self.hosts
        self.start_node(head)
        with ThreadPoolExecutor() as pool:
            list(pool.map(self.start_node, others))
        self.wait_until_alive(self.hosts)

    def start_node(self, host: Host) -> None:
        """Start the node of a host and wait for its processes. Raises RuntimeError with Ray's output."""
        as_head = ["--head", "--port", str(_PORT), "--include-dashboard", "false", "--no-monitor"]
        role = as_head if host is self.hosts[0] else ["--address", self.address]
        command = [
            sys.executable, "-m", "ray.scripts.scripts", "start", *role, "--disable-usage-stats",
            "--node-ip-address", host.address, "--temp-dir", str(_temporary(host)),
            "--num-cpus", str(self._cpus), "--num-gpus", "0", "--object-store-memory", str(self._object_store_bytes),
            "--include-log-monitor", "false",  # no driver reads the workers' output
        ]  # fmt: skip
        started = host.run(command, self._variables, seconds=_START_SECONDS)
        if started.returncode != 0:
            raise RuntimeError(f"Ray does not start on {host.namespace}: {started.stdout}{started.stderr}")

    def drain(self, host: Host, *, seconds: int) -> None:
        """Announce the preemption of a host, as a cloud does. Raises RuntimeError with Ray's output."""
        ended = host.run([sys.executable, "-c", _DRAIN, self.address, host.address, str(seconds)], self._variables)
        if ended.returncode != 0:
            raise RuntimeError(f"Ray does not drain {host.namespace}: {ended.stdout}{ended.stderr}")

    def restore(self, host: Host) -> None:
        """Bring a lost host back, like a machine that was switched off and on: connected, with a new node."""
        host.kill()
        host.plug()
        self.start_node(host)

    def heal(self) -> None:
        """Bring back every lost host and wait until all nodes are alive. A lost head cannot be brought back."""
        lost = [host for host in self.hosts if host.is_lost]
        for host in lost:
            self.restore(host)
        if lost:
            self.wait_until_alive(self.hosts)

    def wait_until_alive(self, hosts: Iterable[Host], *, seconds: float = _START_SECONDS) -> None:
        """Wait until Ray lists the nodes of exactly these hosts as alive. Raises TimeoutError."""
        wanted = {host.address for host in hosts}
        command = [sys.executable, "-c", _WAIT_FOR_NODES, self.address, ",".join(sorted(wanted)), str(seconds)]
        ended = self.hosts[0].run(command, self._variables, seconds=seconds + 30)
        if ended.returncode != 0:
            raise RuntimeError(f"Ray does not list its nodes: {ended.stderr}")
        if set(ended.stdout.split()) != wanted:
            raise TimeoutError(f"after {seconds} s the nodes {ended.stdout.split()} are alive, not {sorted(wanted)}")


def _temporary(host: Host) -> Path:
    return host.folder / "ray"
