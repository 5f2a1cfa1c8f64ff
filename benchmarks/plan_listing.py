"""Time and memory of the driver for planning a build of many images: a first build and a rerun.

    python -m benchmarks.plan_listing [--rows 10000000]

Creates a listing of that many single objects, as from a bucket, plans a first build, gathers the rows of every shard,
then plans a rerun in which every thousandth image has changed. Each runs in its own process, to separate their peaks.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections import Counter

import numpy as np

from benchmarks.measure import machine, save
from pipeline.build.plan import Planner, assign_splits
from pipeline.config import DatasetConfig
from pipeline.dataset.keys import ParentRows
from pipeline.dataset.snapshot import ShardEntry
from pipeline.source.listing import Batch, Listing

CONFIG = DatasetConfig(raw="s3://bucket/raw", dataset="s3://bucket/dataset")


def fill(listing: Listing, rows: int) -> None:
    """Add rows like those of an image folder with a thousand classes."""
    for start in range(0, rows, 10_000):
        numbers = range(start, min(start + 10_000, rows))
        listing.add(
            Batch(
                names=[f"class-{n % 1000:04d}/image-{n:09d}.jpeg" for n in numbers],
                urls=[f"s3://bucket/raw/class-{n % 1000:04d}/image-{n:09d}.jpeg" for n in numbers],
                offsets=[-1] * len(numbers),
                lengths=[110_000] * len(numbers),
                etags=[f"{n:032x}" for n in numbers],
                labels=[f"class-{n % 1000:04d}" for n in numbers],
                splits=[-1] * len(numbers),
                groups=[-1] * len(numbers),
                whole_groups=[False] * len(numbers),
            )
        )


def peak_mib() -> int:
    """Largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def first_build(rows: int) -> dict[str, float]:
    """List, plan and gather; returns the seconds of each step, the shards and the peak memory."""
    seconds: Counter[str] = Counter()
    with Listing() as listing:
        began = time.perf_counter()
        fill(listing, rows)
        seconds["list"] = time.perf_counter() - began
        began = time.perf_counter()
        plan = Planner(listing.rows, assign_splits(listing.rows, CONFIG), CONFIG, "recipe").full()
        seconds["plan"] = time.perf_counter() - began
        began = time.perf_counter()
        gathered = sum(table.num_rows for table in listing.gather([shard.rows for shard in plan.make]))
        seconds["gather"] = time.perf_counter() - began
        assert gathered == rows
    return {**seconds, "shards": len(plan.make), "peak_mib": peak_mib()}


def rerun(rows: int) -> dict[str, float]:
    """Plan against a parent in which every thousandth image is different."""
    with Listing() as listing:
        fill(listing, rows)
        splits = assign_splits(listing.rows, CONFIG)
        planner = Planner(listing.rows, splits, CONFIG, "recipe")
        plans = planner.full().make
        shards = [
            ShardEntry(
                name=plan.name,
                split=plan.split,
                samples=len(plan.rows),
                images=len(plan.rows),
                bytes=0,
                sha256="",
                rejected={},
                quarantine=None,
                index_sha256="",
                quarantine_sha256=None,
            )
            for plan in plans
        ]
        rows_of_shards = np.concatenate([plan.rows for plan in plans])
        numbers = np.repeat(np.arange(len(plans), dtype=np.int32), [len(plan.rows) for plan in plans])
        del plans
        versions = listing.rows.versions[rows_of_shards]
        versions[::1000] += np.uint64(1)
        parent = ParentRows(keys=listing.rows.keys.take(rows_of_shards), versions=versions, shards=numbers)
        del rows_of_shards, numbers, versions
        began = time.perf_counter()
        plan = planner.rerun(shards, parent)
        seconds = time.perf_counter() - began
        assert plan.changed_images == -(-rows // 1000)
    return {"plan": seconds, "rewritten_shards": len(plan.rewrite), "peak_mib": peak_mib()}


def main() -> None:
    """Run both in their own processes, or one of them in this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--only", choices=["first_build", "rerun"])
    arguments = parser.parse_args()
    if arguments.only is not None:
        run = {"first_build": first_build, "rerun": rerun}[arguments.only]
        print(json.dumps(run(arguments.rows)))
        return
    results = {}
    for name in ("first_build", "rerun"):
        command = [sys.executable, "-m", "benchmarks.plan_listing", "--rows", str(arguments.rows), "--only", name]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        results[name] = {key: round(value, 1) for key, value in json.loads(printed).items()}
    save("plan_listing", {"machine": machine("numpy", "pyarrow"), "rows": arguments.rows, **results})


if __name__ == "__main__":
    main()
