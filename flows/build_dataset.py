"""The flow that builds a dataset snapshot from raw images."""

from prefect import flow
from prefect.artifacts import create_table_artifact
from prefect.logging import get_run_logger

from flows import settings
from flows.console import Reporter
from pipeline import build, ray_cluster
from pipeline.build import BuildResult
from pipeline.config import DatasetConfig
from pipeline.snapshot import SPLITS


@flow(name="build-dataset")
def build_dataset(config: DatasetConfig) -> BuildResult:
    """Raw images to a committed snapshot of palette-token shards."""
    ray_cluster.connect(settings.load().ray_address)
    reporter = Reporter("dataset")
    result = build.build(config, progress=reporter)
    reporter.say(describe(result))
    get_run_logger().info(describe(result))
    create_table_artifact(
        key="dataset",
        table=_table(result),
        description=f"Snapshot {result.snapshot.number} of {result.snapshot.dataset}",
    )
    return result


def describe(result: BuildResult) -> str:
    """One line on what a build ended with."""
    snapshot = result.snapshot
    reasons = ", ".join(f"{count} {reason}" for reason, count in snapshot.rejected.items())
    state = "is unchanged" if result.unchanged else "is published"
    return (
        f"snapshot {snapshot.number} {state}: {snapshot.samples():,} of {result.images_in:,} images in "
        f"{len(snapshot.shards)} shards, {sum(snapshot.rejected.values())} rejected"
        + (f" ({reasons})" if reasons else "")
    )


def _table(result: BuildResult) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = [
        {
            "split": split,
            "images": result.snapshot.samples(split),
            "shards": sum(shard.split == split for shard in result.snapshot.shards),
        }
        for split in SPLITS
    ]
    rows += [
        {"split": f"rejected: {reason}", "images": n, "shards": ""} for reason, n in result.snapshot.rejected.items()
    ]
    return rows
