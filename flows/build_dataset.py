"""The flow that builds a dataset snapshot from raw images, and its log lines and Prefect artifact."""

from prefect import flow
from prefect.logging import get_run_logger
from prefect.runtime import flow_run

from flows.prefect_ops import artifacts, ray_job
from flows.prefect_ops.failures import in_one_line
from flows.prefect_ops.lease import exclusively
from flows.prefect_ops.names import making
from flows.prefect_ops.progress_page import ProgressPage
from flows.prefect_ops.termination import terminable
from flows.services import settings
from flows.terminal.console import Reporter
from flows.version import version
from pipeline.build import build
from pipeline.build.build import BuildResult, PlannedBuild
from pipeline.cluster.metrics import Meter
from pipeline.config import DatasetConfig
from pipeline.dataset.record import Publisher
from pipeline.dataset.snapshot import SPLITS
from pipeline.progress import together
from pipeline.source import left_out


@flow(name="build-dataset", flow_run_name=making("build {}", "config.dataset"))
@in_one_line
def build_dataset(
    config: DatasetConfig, refit_palette: bool = False, remake: bool = False, verify_bytes: bool = False
) -> BuildResult:
    """Build a committed snapshot of palette-token shards from raw images; a rerun processes only what changed."""
    ray_job.begin(settings.load().ray_address, "build")
    reporter = Reporter("dataset")
    with terminable(), ProgressPage() as page, Meter("build", config.dataset) as meter:
        result = build.build(
            config,
            refit_palette=refit_palette,
            remake=remake,
            verify_bytes=verify_bytes,
            publisher=Publisher(program=f"igpt {version()}", flow_run=_flow_run()),
            progress=together(reporter, meter.progress, page),
            announce=lambda planned: _announce(planned, reporter),
            exclusively=lambda dataset: exclusively(dataset, reporter.say),
        )
    reporter.say(describe(result))
    get_run_logger().info(describe(result))
    artifacts.table("dataset", _table(result), f"Snapshot {result.snapshot.number} of {result.snapshot.dataset}")
    return result


def _flow_run() -> str | None:
    """The page of this flow run."""
    return f"{settings.load().prefect_url}/runs/flow-run/{flow_run.id}" if flow_run.id else None


def _announce(planned: PlannedBuild, reporter: Reporter) -> None:
    reporter.say(describe_plan(planned))
    if planned.left_out:
        reporter.say(left_out.describe(planned.left_out))


def describe_plan(planned: PlannedBuild) -> str:
    """One line on what a build will do."""
    plan = planned.plan
    if plan is None:
        done = f"nothing to do: the source is unchanged since snapshot {planned.parent}"
        return "; ".join([done, *_besides(planned, kept=True)])
    parts = [f"keep {len(plan.keep)} shards, make {len(plan.make)}, rewrite {len(plan.rewrite)}, drop {len(plan.drop)}"]
    if planned.parent is not None and not planned.changed_config and planned.palette != "refitted":
        parts.append(
            f"{plan.new_images:,} images new, {plan.changed_images:,} changed, {plan.deleted_images:,} deleted"
        )
    if planned.changed_config == ("keep_columns",):
        parts.append("write every index anew, because keep_columns changed")
    elif planned.changed_config:
        parts.append(f"rebuild everything, because {', '.join(planned.changed_config)} changed")
    parts.append(f"palette {planned.palette}")
    if planned.unlabelled:
        parts.append(f"{planned.unlabelled:,} images without a label")
    if planned.unmatched_labels:
        parts.append(f"{planned.unmatched_labels:,} rows of the label file without an image")
    return "; ".join([*parts, *_besides(planned, kept=bool(plan.keep or plan.rewrite))])


def _besides(planned: PlannedBuild, *, kept: bool) -> list[str]:
    """What else a build does or leaves; `kept`: whether it keeps samples of the parent."""
    parts = []
    if planned.moved_from is not None:
        parts.append(f"the raw images moved here from {planned.moved_from}, their addresses follow")
    if planned.erased:
        parts.append(f"{planned.erased:,} images were erased from the dataset and are left out")
    if planned.recovered:
        parts.append(f"{planned.recovered:,} images refused by an older rule are accepted now")
    if planned.older_images and kept:
        rules = " and ".join(planned.older_rules)
        what = "made anew" if planned.remake else "kept, --remake makes them anew"
        parts.append(f"{planned.older_images:,} images were decoded by {rules}, today's is {planned.rule}: {what}")
    return parts


def describe(result: BuildResult) -> str:
    """One line on the result of a build."""
    snapshot = result.snapshot
    reasons = ", ".join(f"{count} {reason}" for reason, count in snapshot.rejected.items())
    state = "is unchanged" if result.unchanged else "is published"
    # Which copy is kept decides how many images a split has.
    splits = ", ".join(f"{split} {snapshot.images(split):,}" for split in SPLITS)
    return (
        f"snapshot {snapshot.number} {state}: {snapshot.images():,} of {result.planned.images_in:,} images in "
        f"{len(snapshot.shards)} shards, {sum(snapshot.rejected.values())} rejected"
        + (f" ({reasons})" if reasons else "")
        + (f"; {splits}" if "duplicate" in snapshot.rejected else "")
    )


def _table(result: BuildResult) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = [
        {
            "split": split,
            "images": result.snapshot.images(split),
            "shards": sum(shard.split == split for shard in result.snapshot.shards),
        }
        for split in SPLITS
    ]
    rows += [
        {"split": f"rejected: {reason}", "images": n, "shards": ""} for reason, n in result.snapshot.rejected.items()
    ]
    return rows
