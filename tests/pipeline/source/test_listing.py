"""A listing: rows are read back in any order, from parts and buckets, and memory holds only numbers."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.dataset.keys import key_of
from pipeline.errors import IgptError
from pipeline.source import listing as listings
from pipeline.source.listing import Batch, Listing

ROOT = Path(__file__).parents[3]


def batch_of(numbers: range) -> Batch:
    return Batch(
        names=[f"class-{n % 7}/{n}.png" for n in numbers],
        urls=[f"s3://bucket/class-{n % 7}/{n}.png" for n in numbers],
        offsets=[-1] * len(numbers),
        lengths=[100 + n for n in numbers],
        etags=[f"{n:032x}" for n in numbers],
        labels=[None if n % 7 == 6 else f"class-{n % 7}" for n in numbers],
        splits=[-1] * len(numbers),
        groups=[-1] * len(numbers),
        whole_groups=[False] * len(numbers),
    )


@pytest.mark.parametrize("bucket_rows", [50, 10**6])
def test_rows_are_gathered_in_the_order_in_which_they_are_asked_for(
    bucket_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listings, "_PART_ROWS", 100)
    monkeypatch.setattr(listings, "_BUCKET_ROWS", bucket_rows)
    generator = np.random.default_rng(0)
    with Listing() as listing:
        for start in range(0, 1000, 60):
            listing.add(batch_of(range(start, min(start + 60, 1000))))
        assert len(listing) == len(listing.rows) == 1000
        groups = np.array_split(generator.permutation(1000)[:900], [0, 3, 3, 100, 180, 400, 850])
        tables = list(listing.gather(groups))
        assert len(tables) == len(groups)
        for group, table in zip(groups, tables, strict=True):
            assert table["name"].to_pylist() == [f"class-{n % 7}/{n}.png" for n in group]
            assert table["length"].to_pylist() == [100 + n for n in group]
            assert table["key"].to_pylist() == [key_of(f"class-{n % 7}/{n}.png") for n in group]
            assert np.array_equal(table["version"].to_numpy(), listing.rows.versions[group])
        assert listing.rows.labels[:8].tolist() == [0, 1, 2, 3, 4, 5, -1, 0]
        assert listing.label_names == tuple(f"class-{n}" for n in range(6))


def test_a_listing_leaves_nothing_behind() -> None:
    with Listing() as listing:
        listing.add(batch_of(range(10)))
        folder = Path(listing._folder.name)
        listing.take(np.array([3]))
        assert list(folder.iterdir())
    assert not folder.exists()


def test_two_images_of_one_name_are_refused() -> None:
    with Listing() as listing:
        listing.add(batch_of(range(10)))
        listing.add(batch_of(range(7, 8)))
        with pytest.raises(IgptError, match=r"'class-0/7\.png' and 'class-0/7\.png' have the same key"):
            _ = listing.rows


_LARGE = """
import resource, sys
import numpy as np
from pipeline.config import DatasetConfig
from pipeline.source.listing import Batch, Listing
from pipeline.build.plan import Planner, assign_splits
config = DatasetConfig(raw="s3://bucket/raw", dataset="s3://bucket/dataset")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
count = int(sys.argv[1])
with Listing() as listing:
    for start in range(0, count, 10_000):
        numbers = range(start, min(start + 10_000, count))
        listing.add(Batch(
            names=[f"class-{n % 1000:04d}/image-{n:09d}.jpeg" for n in numbers],
            urls=[f"s3://bucket/raw/class-{n % 1000:04d}/image-{n:09d}.jpeg" for n in numbers],
            offsets=[-1] * len(numbers), lengths=[110_000] * len(numbers), etags=[f"{n:032x}" for n in numbers],
            labels=[f"class-{n % 1000:04d}" for n in numbers], splits=[-1] * len(numbers),
            groups=[-1] * len(numbers), whole_groups=[False] * len(numbers)))
    plan = Planner(listing.rows, assign_splits(listing.rows, config), config, "recipe").full()
    gathered = 0
    for shard, table in zip(plan.make, listing.gather([shard.rows for shard in plan.make])):
        assert table.num_rows == len(shard.rows)
        gathered += table.num_rows
assert gathered == count
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def planning_bytes(count: int) -> int:
    done = subprocess.run(
        [sys.executable, "-c", _LARGE, str(count)], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_planning_needs_little_memory_per_image() -> None:
    """benchmarks/plan_listing.py plans ten million rows. Two million as objects of Python would take over 2 GB."""
    assert planning_bytes(2_000_000) < 800 * 2**20
