"""Shared fixtures: a PostgreSQL server, a Ray cluster, the wheel, and the rig of three Ray nodes and a faulty S3."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from flows.services.ports import HOST, free_port
from tests import machine
from tests.rigs.environments import build_wheel, with_wheel
from tests.rigs.faulty_s3 import FaultyS3
from tests.rigs.hosts import Host, Network
from tests.rigs.postgres import PostgresData, PostgresServer
from tests.rigs.ray_nodes import RayNodes
from tests.rigs.s3_server import S3Server, launch_here, serve


@dataclass(frozen=True, kw_only=True)
class Rig:
    """The rig, which runs for the whole session."""

    network: Network
    s3: S3Server
    """The server, on its own host."""
    proxy: FaultyS3
    """The proxy that all clients of the server use, at this machine's address in the network."""
    nodes: RayNodes
    """Three nodes of one CPU each; their workers use S3 through the proxy."""

    @property
    def hosts(self) -> list[Host]:
        """The hosts of the three nodes; the first runs the head."""
        return self.nodes.hosts


@pytest.fixture(scope="module")
def own_ray() -> Iterator[None]:
    """Make this process the driver of a Ray cluster with two CPUs, for one module."""
    import ray  # not at the top: it reads its variables at import, after other modules have set them

    ray.shutdown()
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def needs_hosts() -> None:
    """Skip the test, with the reason, if hosts cannot be created here."""
    machine.require("hosts")


@pytest.fixture(scope="session")
def whole_rig(needs_hosts: None) -> Iterator[Rig]:
    """The rig, started once; tests use `rig`."""
    with Network() as network:
        storage, *hosts = [network.add(label) for label in ("s3", "ray1", "ray2", "ray3")]
        with (
            serve(storage.folder / "data", storage.address, 9000, storage.start) as s3,
            FaultyS3(s3.url, address=network.address) as proxy,
        ):
            nodes = RayNodes(hosts, s3.environment(proxy.url))
            nodes.start()
            yield Rig(network=network, s3=s3, proxy=proxy, nodes=nodes)


@pytest.fixture
def rig(whole_rig: Rig) -> Rig:
    """The rig with all three nodes alive; nodes that an earlier test has lost are restored."""
    whole_rig.nodes.heal()
    return whole_rig


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server on loopback, started once; each test creates its own database."""
    machine.require("postgres")
    with PostgresData() as data, data.serve(HOST, free_port(), launch_here) as server:
        yield server


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's wheel, built once."""
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def wheel_programs(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment with the wheel and this interpreter's packages."""
    return with_wheel(wheel, tmp_path_factory.mktemp("installed"))
