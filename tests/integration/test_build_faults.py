"""Lost nodes and a failing store: builds take longer and give the same bytes as an undisturbed one."""

import io
import json
import sys
import time
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from tests.rigs.disks import fill, small_disk
from tests.rigs.fixtures import Rig
from tests.rigs.hosts import Host
from tests.rigs.ray_nodes import RayNodes
from tests.rigs.s3_faults import Fault, Faults

pytestmark = [pytest.mark.services, pytest.mark.faults]

IMAGES = 900
FEW = 40
BUILD = """
import json, os, sys
from pipeline.cluster import tasks
from pipeline.build.build import build
from pipeline.config import DatasetConfig

tasks.connect(os.environ["RAY_ADDRESS"])
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
    """Put `count` photographs in class folders into the bucket `raw`, and three files that are not images."""
    folder = rig.s3.bucket("raw") / name
    for label in ("temple", "flower"):
        (folder / label).mkdir(parents=True)
    for number in range(count):
        label = ("temple", "flower")[number % 20 // 10]
        (folder / label / f"{number:04d}.jpg").write_bytes(photographs[number % 20])
    for number, data in enumerate((b"", b"<html>not found</html>", photographs[0][:5000])):
        (folder / "temple" / f"bad-{number}.jpg").write_bytes(data)


class Build:
    """A build in a process of its own on the first host."""

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
        """Wait for its end, and fail with its output unless it has published its first snapshot."""
        self.process.wait(timeout=240)
        said = self.log.read_text()
        assert f"published 1 {images} 3\n" in said, said


def contents(rig: Rig, dataset: str) -> dict[str, bytes]:
    """The files of a dataset by path, without what says who works or worked on it, and when."""
    folder = rig.s3.bucket("datasets") / dataset
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    passing = ("active/", "snapshots/000001.json.claims/", "records/000001.json")
    return {name: path.read_bytes() for name, path in files.items() if not name.startswith(passing)}


def indexed(rig: Rig, dataset: str) -> int:
    """The number of finished shards of a dataset."""
    return len(list((rig.s3.bucket("datasets") / dataset / "index").glob("*.parquet")))


def wait_until(build: Build, condition: Callable[[], bool]) -> None:
    while not condition():
        assert build.process.poll() is None, f"the build ended before it was disturbed: {build.log.read_text()}"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def undisturbed(whole_rig: Rig, photographs: list[bytes]) -> dict[str, bytes]:
    """The files of the dataset when three nodes build it undisturbed."""
    whole_rig.nodes.heal()
    put_images(whole_rig, photographs, "photos", IMAGES)
    before = whole_rig.proxy.requests.copy()
    Build(whole_rig.nodes, "photos", "undisturbed").assert_publishes(IMAGES)
    # Every node has written shards: a shard takes one PUT, its index another.
    made = whole_rig.proxy.requests - before
    assert min(made[host.address, "PUT"] for host in whole_rig.hosts) >= 2
    return contents(whole_rig, "undisturbed")


def test_one_node_makes_the_bytes_that_three_make(rig: Rig, undisturbed: dict[str, bytes]) -> None:
    host = rig.network.add("solo")
    nodes = RayNodes([host], rig.s3.environment(rig.proxy.url))
    nodes.start()
    Build(nodes, "photos", "alone").assert_publishes(IMAGES)
    host.kill()
    assert contents(rig, "alone") == undisturbed


@pytest.mark.sample
def test_a_lost_node_costs_its_shards_in_flight(rig: Rig, undisturbed: dict[str, bytes]) -> None:
    before = rig.proxy.requests.copy()

    def at_work() -> list[Host]:
        """The nodes other than the head that have written shards."""
        return [host for host in rig.hosts[1:] if (rig.proxy.requests - before)[host.address, "PUT"] >= 2]

    # The store is slow until the node is lost: otherwise the head might make most shards before the others start.
    busy = Faults(share=0.7, kinds=(Fault.SLOW_DOWN,), methods=frozenset({"PUT"}), prefix="/datasets/lost/shards")
    with rig.proxy.inject(busy):
        build = Build(rig.nodes, "photos", "lost")
        wait_until(build, lambda: bool(at_work()))
        at_work()[0].remove()
    assert indexed(rig, "lost") + 8 < indexed(rig, "undisturbed"), "the node was lost too late"
    build.assert_publishes(IMAGES)
    Build(rig.nodes, "photos", "lost").assert_publishes(IMAGES)
    assert contents(rig, "lost") == undisturbed


def test_a_full_disk_on_a_node_costs_nothing(rig: Rig, undisturbed: dict[str, bytes]) -> None:
    """The disk with Ray's logs and spilled objects is full, so Ray's workers on that node die at once."""
    victim = rig.hosts[2]
    victim.remove()
    with small_disk(victim.folder / "ray", mebibytes=32) as disk:
        rig.nodes.heal()
        fill(disk)
        Build(rig.nodes, "photos", "full").assert_publishes(IMAGES)
        victim.remove()
    assert contents(rig, "full") == undisturbed


@pytest.fixture(scope="module")
def few(whole_rig: Rig, photographs: list[bytes]) -> dict[str, bytes]:
    """The files of a dataset of few images, for tests whose clients wait long between retries."""
    whole_rig.nodes.heal()
    put_images(whole_rig, photographs, "few", FEW)
    Build(whole_rig.nodes, "few", "few").assert_publishes(FEW)
    return contents(whole_rig, "few")


@pytest.mark.sample
def test_a_third_of_the_requests_failing_costs_time_only(rig: Rig, few: dict[str, bytes]) -> None:
    with rig.proxy.inject(Faults(share=1 / 3)) as injection:
        Build(rig.nodes, "few", "third").assert_publishes(FEW)
    assert set(injection.counts) == set(Fault)
    Build(rig.nodes, "few", "third").assert_publishes(FEW)
    assert contents(rig, "third") == few


BURSTS = {
    "the store is busy at the first requests": Faults(
        share=1, max_faults=3, kinds=(Fault.INTERNAL_ERROR,), methods=frozenset({"HEAD"})
    ),
    "one object is truncated again and again": Faults(
        share=1, max_faults=6, kinds=(Fault.TRUNCATE,), prefix="/raw/few/temple/0000.jpg"
    ),
}


# A limit on the number of tries would not do: of ten million images, 14,000 get six faults in a row when a third of the
# requests fail.
@pytest.mark.parametrize("burst", BURSTS)
def test_faults_in_a_row_cost_time_only(rig: Rig, few: dict[str, bytes], burst: str) -> None:
    dataset = "-".join(burst.split())
    with rig.proxy.inject(BURSTS[burst]) as injection:
        Build(rig.nodes, "few", dataset).assert_publishes(FEW)
    assert injection.counts.total() == BURSTS[burst].max_faults
    assert contents(rig, dataset) == few


# With botocore's retries alone, the quota that all requests of a client share is used up within seconds.
@pytest.mark.sample
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
