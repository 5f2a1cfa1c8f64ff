"""How a build scales with its workers, and the cost of the driver. Workers sleep instead of making shards.

    python -m benchmarks.build_scaling [--seconds 1.0]

Sleeping for the time that decoding takes lets two cores run sixteen workers. The calls are those of a real plan of
shards of 8,192 images, gathered from a listing and sent to the workers.
"""

import argparse
import time

import numpy as np
import ray

from benchmarks.measure import machine, save
from benchmarks.plan_listing import CONFIG, fill
from pipeline.build import plan, run_plan
from pipeline.build.shard_tasks import ShardTask
from pipeline.build.source_state import SourceState
from pipeline.cluster import tasks
from pipeline.source.listing import Listing

SHARDS = 96
# Seconds in which a core decodes the images of a shard: 0.7 ms per image, measured by build_dataset.py on two cores.
REAL_SECONDS = 8192 * 0.0014


def sleeping(task: ShardTask, seconds: float, table: np.ndarray) -> tuple[str, int]:
    """Replaces make_shard."""
    time.sleep(seconds)
    return task.name, task.listing.num_rows


def run(state: SourceState, plans: tuple[plan.ShardPlan, ...], workers: int, seconds: float) -> dict[str, float]:
    """Make all shards on a new cluster of `workers`."""
    ray.init(address="local", num_cpus=workers, include_dashboard=False, log_to_driver=False)
    try:
        list(tasks.map_tasks(lambda: time.sleep(0.2), [()] * 2 * workers))  # the workers start
        table = np.zeros(1 << 24, np.uint16)
        wall, processor = time.perf_counter(), time.process_time()
        calls = ((task,) for task in run_plan.shard_tasks(state, plans, tolerant=False))
        done = sum(rows for _, (_, rows) in tasks.map_tasks(sleeping, calls, shared=(seconds, table)))
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
    finally:
        ray.shutdown()
    assert done == len(state.rows)
    return {
        "images_per_second": round(done / wall),
        "of_ideal": round(len(plans) * seconds / workers / wall, 3),
        "driver_milliseconds_a_shard": round(1000 * processor / len(plans), 1),
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.0, help="how long a shard takes")
    arguments = parser.parse_args()
    with Listing() as listing:
        fill(listing, SHARDS * CONFIG.samples_per_shard)
        splits = np.zeros(len(listing), np.int8)
        plans = plan.Planner(listing.rows, splits, CONFIG, "recipe").full().make
        state = SourceState(
            dataset="-",
            parent=None,
            listing=listing,
            rows=listing.rows,
            splits=splits,
            duplicate_of=np.full(len(listing), -1),
            classes=listing.label_names,
            scans=(),
            left_out={},
            unmatched_labels=0,
            unlabelled=0,
        )
        results = {workers: run(state, plans, workers, arguments.seconds) for workers in (1, 2, 4, 8, 16)}
    cost = results[16]["driver_milliseconds_a_shard"] / 1000
    save(
        "build_scaling",
        {
            "machine": machine("ray", "pyarrow"),
            "shards": len(plans),
            "seconds_a_shard": arguments.seconds,
            "by_workers": results,
            "driver_is_the_bottleneck": {
                "shards_per_second": round(1 / cost, 1),
                "images_per_second": round(CONFIG.samples_per_shard / cost),
                "workers_that_decode_a_shard_in_seconds": round(REAL_SECONDS, 1),
                "from_workers": round(REAL_SECONDS / cost),
            },
        },
    )


if __name__ == "__main__":
    main()
