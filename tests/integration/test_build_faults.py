"""Faults in a build, for real: every one ends, after a plain rerun at most, with the bytes of an undisturbed build."""

import io
import json
import sys
import time
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from tests.rigs.fixtures import Rig
from tests.rigs.ray_nodes import RayNodes
from tests.rigs.s3_faults import Fault, Faults

pytestmark = pytest.mark.services

IMAGES = 600
FEW = 40
BUILD = """
import json, os, sys
from pipeline import ray_cluster
from pipeline.build import build
from pipeline.config import DatasetConfig

ray_cluster.connect(os.environ["RAY_ADDRESS"])
snapshot = build(DatasetConfig(**json.loads(sys.argv[1]))).snapshot
print("published", snapshot.number, snapshot.samples(), sum(snapshot.rejected.values()))
"""


@pytest.fixture(scope="module")
def photographs() -> list[bytes]:
    """Twenty cuttings of two photographs as JPEG, ten of a temple, then ten of a flower."""
    random = np.random.default_rng(0)
    encoded = []
    for photo_HWC in load_sample_images().images:
        for top, left in zip(random.integers(0, 27, 10), random.integers(0, 140, 10), strict=True):
            stream = io.BytesIO()
            Image.fromarray(photo_HWC[top : top + 400, left : left + 500]).save(stream, "JPEG", quality=90)
            encoded.append(stream.getvalue())
    return encoded


def put_images(rig: Rig, photographs: list[bytes], name: str, count: int) -> None:
    """A class folder of so many photographs in the bucket `raw`, and three files that are none."""
    folder = rig.s3.bucket("raw") / name
    for label in ("temple", "flower"):
        (folder / label).mkdir(parents=True)
    for number in range(count):
        label = ("temple", "flower")[number % 20 // 10]
        (folder / label / f"{number:04d}.jpg").write_bytes(photographs[number % 20])
    for number, data in enumerate((b"", b"<html>not found</html>", photographs[0][:5000])):
        (folder / "temple" / f"bad-{number}.jpg").write_bytes(data)


class Build:
    """A build that runs in a process of its own on a host, as a user's does."""

    def __init__(self, nodes: RayNodes, raw: str, dataset: str) -> None:
        config = {
            "raw": f"s3://raw/{raw}",
            "dataset": f"s3://datasets/{dataset}",
            "resolution": 32,
            "colours": 64,
            "palette_images": 200,
            "samples_per_shard": 15,
            "max_reject_fraction": 0.1,
        }
        host = nodes.hosts[0]
        self.log = host.folder / f"{dataset}-{time.monotonic_ns()}.log"
        self.process = host.start([sys.executable, "-c", BUILD, json.dumps(config)], nodes.environment(host), self.log)

    def assert_publishes(self, images: int) -> None:
        """Wait for its end, and fail with what it said unless it has published its first snapshot."""
        self.process.wait(timeout=240)
        said = self.log.read_text()
        assert said.endswith(f"published 1 {images} 3\n"), said


def contents(rig: Rig, dataset: str) -> dict[str, bytes]:
    """The bytes of every object of a dataset, by its path."""
    folder = rig.s3.bucket("datasets") / dataset
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def indexed(rig: Rig, dataset: str) -> int:
    """How many shards of a dataset are finished."""
    return len(list((rig.s3.bucket("datasets") / dataset / "index").glob("*.parquet")))


def wait_until(build: Build, condition: Callable[[], bool]) -> None:
    while not condition():
        assert build.process.poll() is None, f"the build ended before it was disturbed: {build.log.read_text()}"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def undisturbed(whole_rig: Rig, photographs: list[bytes]) -> dict[str, bytes]:
    """The bytes of the dataset as one node makes it."""
    put_images(whole_rig, photographs, "photos", IMAGES)
    host = whole_rig.network.add("solo")
    nodes = RayNodes([host], whole_rig.s3.environment(whole_rig.proxy.url))
    nodes.start()
    Build(nodes, "photos", "undisturbed").assert_publishes(IMAGES)
    host.kill()
    return contents(whole_rig, "undisturbed")


def test_three_nodes_make_the_bytes_that_one_makes(rig: Rig, undisturbed: dict[str, bytes]) -> None:
    before = rig.proxy.requests.copy()
    Build(rig.nodes, "photos", "three").assert_publishes(IMAGES)
    # Each of them has written shards: a shard is a PUT of its own and one of its index.
    assert min(rig.proxy.requests[host.address, "PUT"] - before[host.address, "PUT"] for host in rig.hosts) >= 2
    assert contents(rig, "three") == undisturbed


def test_a_lost_node_costs_its_shards_in_flight(rig: Rig, undisturbed: dict[str, bytes]) -> None:
    victim = rig.hosts[2]
    before = rig.proxy.requests[victim.address, "PUT"]
    build = Build(rig.nodes, "photos", "lost")
    wait_until(build, lambda: indexed(rig, "lost") >= 8 and rig.proxy.requests[victim.address, "PUT"] >= before + 2)
    victim.remove()
    assert indexed(rig, "lost") + 8 < indexed(rig, "undisturbed"), "the node was lost too late"
    build.assert_publishes(IMAGES)
    Build(rig.nodes, "photos", "lost").assert_publishes(IMAGES)
    assert contents(rig, "lost") == undisturbed


def test_a_killed_driver_costs_the_shards_in_flight(rig: Rig, undisturbed: dict[str, bytes]) -> None:
    build = Build(rig.nodes, "photos", "killed")
    wait_until(build, lambda: indexed(rig, "killed") >= 8)
    build.process.kill()
    build.process.wait()
    assert indexed(rig, "killed") + 8 < indexed(rig, "undisturbed"), "the driver was killed too late"
    assert "LATEST" not in contents(rig, "killed")
    Build(rig.nodes, "photos", "killed").assert_publishes(IMAGES)
    assert contents(rig, "killed") == undisturbed


@pytest.fixture(scope="module")
def few(whole_rig: Rig, photographs: list[bytes]) -> dict[str, bytes]:
    """The bytes of a dataset of few images, for tests whose clients wait long between their tries."""
    whole_rig.nodes.heal()
    put_images(whole_rig, photographs, "few", FEW)
    Build(whole_rig.nodes, "few", "few").assert_publishes(FEW)
    return contents(whole_rig, "few")


def test_a_third_of_the_requests_failing_costs_time_only(rig: Rig, few: dict[str, bytes]) -> None:
    with rig.proxy.inject(Faults(share=1 / 3)) as injection:
        Build(rig.nodes, "few", "third").assert_publishes(FEW)
    assert set(injection.counts) == set(Fault)
    Build(rig.nodes, "few", "third").assert_publishes(FEW)
    assert contents(rig, "third") == few


BURSTS = {
    "the store is busy when it is first asked": Faults(
        share=1, max_faults=3, kinds=(Fault.INTERNAL_ERROR,), methods=frozenset({"HEAD"})
    ),
    "one object is cut off again and again": Faults(
        share=1, max_faults=6, kinds=(Fault.TRUNCATE,), prefix="/raw/few/temple/0000.jpg"
    ),
}


# Of s3fs's and botocore's retries: check_reachable makes two tries, and a body that is cut off has five within two
# seconds. Of ten million images, 14,000 meet six faults in a row when a third of the requests fail.
@pytest.mark.xfail(strict=True, reason="pipeline/storage.py counts tries, and few, instead of giving them time")
@pytest.mark.parametrize("burst", BURSTS)
def test_faults_in_a_row_cost_time_only(rig: Rig, few: dict[str, bytes], burst: str) -> None:
    dataset = "-".join(burst.split())
    with rig.proxy.inject(BURSTS[burst]) as injection:
        Build(rig.nodes, "few", dataset).assert_publishes(FEW)
    assert injection.counts.total() == BURSTS[burst].max_faults
    assert contents(rig, dataset) == few


@pytest.mark.xfail(
    strict=True, reason="botocore's quota lets all concurrent requests of a client together try 100 times"
)
def test_ten_seconds_without_the_store_cost_time_only(rig: Rig, undisturbed: dict[str, bytes]) -> None:
    before = rig.proxy.requests.copy()
    build = Build(rig.nodes, "photos", "outage")
    wait_until(build, lambda: (rig.proxy.requests - before).total() > 20)  # in the middle of the reads for the palette
    rig.proxy.stop_for(10)
    try:
        build.assert_publishes(IMAGES)
    finally:
        rig.proxy.resume()
    assert contents(rig, "outage") == undisturbed
