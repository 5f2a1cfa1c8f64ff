"""The build: source listing -> plan -> palette -> shards -> committed snapshot, its tasks run on the Ray cluster."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline import palette, plan, ray_cluster, snapshot, sources, storage
from pipeline.config import DatasetConfig, digest
from pipeline.errors import IgptError
from pipeline.progress import Progress, silent
from pipeline.shard_tasks import ShardResult, count_colours, make_shard
from pipeline.snapshot import Snapshot

_IMAGES_PER_COUNT = 1000


@dataclass(frozen=True, kw_only=True)
class BuildResult:
    """The snapshot that a build ended with, and what it took."""

    snapshot: Snapshot
    unchanged: bool
    """Whether the snapshot was there already: same source, same config."""
    images_in: int
    """Images that the source lists."""
    ignored_files: int
    """Files of the source that are no images by their extension."""
    shards_reused: int
    """Shards that an earlier, interrupted build had finished."""
    seconds: dict[str, float]
    """Time of each step on the driver: list, palette, shards, commit."""
    task_seconds: dict[str, float]
    """Time summed over the tasks: read, decode, quantize, write."""


def build(config: DatasetConfig, *, progress: Progress = silent) -> BuildResult:
    """Build the dataset that the config describes, on the cluster this process is connected to.

    Raises IgptError for a source, a store or a config that cannot be used, when too many images are rejected, or when
    the counts do not add up; nothing is published then.
    """
    seconds: dict[str, float] = {}
    since = time.perf_counter()

    def lap(step: str) -> None:
        nonlocal since
        now = time.perf_counter()
        seconds[step] = now - since
        since = now

    dataset = storage.absolute(config.dataset)
    storage.check_reachable(dataset)
    source = sources.list_source(config.raw, progress=lambda count: progress("list", count, 0, "images"))
    lap("list")
    latest = snapshot.latest_number(dataset)
    parent = snapshot.read(dataset, latest) if latest is not None else None
    if parent is not None and _is_same(parent, config, source):
        return BuildResult(
            snapshot=parent,
            unchanged=True,
            images_in=source.listing.num_rows,
            ignored_files=source.ignored_files,
            shards_reused=len(parent.shards),
            seconds=seconds,
            task_seconds={},
        )
    palette_K3 = _palette(config, dataset, parent, source.listing, progress)
    palette_sha256 = palette.sha256(palette_K3)
    storage.write_bytes(storage.join(dataset, snapshot.palette_path(palette_sha256)), palette.to_bytes(palette_K3))
    lap("palette")
    plans = plan.plan_shards(source.listing, source.classes, config, palette_sha256)
    results = _make_shards(config, dataset, source, plans, palette_K3, progress)
    lap("shards")
    rejected: Counter[str] = sum((Counter(result.rejected) for result in results), Counter())
    _check_counts(config, dataset, plans, results, rejected)
    new = Snapshot(
        number=1 if parent is None else parent.number + 1,
        parent=None if parent is None else parent.number,
        resolution=config.resolution,
        classes=source.classes,
        palette_sha256=palette_sha256,
        colours=len(palette_K3),
        config=config.fingerprint(),
        source_digest=source.digest,
        shards=tuple(result.entry for result in results),
        rejected=dict(sorted(rejected.items())),
        dataset=dataset,
    )
    snapshot.commit(new)
    lap("commit")
    return BuildResult(
        snapshot=new,
        unchanged=False,
        images_in=source.listing.num_rows,
        ignored_files=source.ignored_files,
        shards_reused=sum(result.reused for result in results),
        seconds=seconds,
        task_seconds=dict(sum((Counter(result.seconds) for result in results), Counter())),
    )


def _is_same(parent: Snapshot, config: DatasetConfig, source: sources.Source) -> bool:
    return (
        digest(parent.config) == digest(config.fingerprint())
        and parent.source_digest == source.digest
        and (config.palette is None or palette.sha256(_given_palette(config)) == parent.palette_sha256)
    )


def _given_palette(config: DatasetConfig) -> np.ndarray:
    """The palette that the config names, float32 [K, 3]. Raises IgptError when it is not there or does not fit."""
    url = storage.absolute(config.palette or "")
    try:
        palette_K3 = palette.from_bytes(storage.read_bytes(url), url)
    except (FileNotFoundError, IsADirectoryError):
        raise IgptError(f"{url}: no palette there; correct the URL or leave palette empty to fit one") from None
    if len(palette_K3) != config.colours:
        raise IgptError(
            f"{url} has {len(palette_K3)} colours and colours is {config.colours}: set colours to {len(palette_K3)}"
        )
    return palette_K3


def _palette(
    config: DatasetConfig, dataset: str, parent: Snapshot | None, listing: pa.Table, progress: Progress
) -> np.ndarray:
    """The palette of the build, float32 [K, 3]: the given one, the parent's where it fits, or a new fit."""
    if config.palette is not None:
        return _given_palette(config)
    if parent is not None and parent.colours == config.colours:
        # The palette stays with the dataset: another one would change every token.
        return parent.palette()
    rows = plan.sample_for_palette(listing, config)
    if not len(rows):
        raise IgptError(f"{config.raw}: no image falls into the training split; give more images or smaller fractions")
    parts = [listing.take(part) for part in np.array_split(rows, -(-len(rows) // _IMAGES_PER_COUNT))]
    histogram = palette.ColourHistogram()
    done = 0
    progress("palette", 0, len(rows), "images")
    for number, counted in ray_cluster.map_tasks(count_colours, ((part,) for part in parts), shared=(config,)):
        histogram.merge(counted)
        done += parts[number].num_rows
        progress("palette", done, len(rows), "images")
    if not histogram.counts.any():
        raise IgptError(f"{config.raw}: none of {len(rows)} sampled images could be decoded; is this the right prefix?")
    return palette.fit(histogram, config.colours, config.seed)


def _make_shards(
    config: DatasetConfig,
    dataset: str,
    source: sources.Source,
    plans: Sequence[plan.ShardPlan],
    palette_K3: np.ndarray,
    progress: Progress,
) -> list[ShardResult]:
    """Run one task per shard; returns their results in the order of the plan."""
    labels = plan.label_numbers(source.listing, source.classes)
    calls = ((dataset, p.name, p.split, source.listing.take(p.rows), labels[p.rows]) for p in plans)
    results: list[ShardResult | None] = [None] * len(plans)
    images_done = 0
    progress("shards", 0, source.listing.num_rows, "images")
    shared = (config, palette.lookup_table(palette_K3))
    finished = ray_cluster.map_tasks(make_shard, calls, shared=shared)
    for shards_done, (number, result) in enumerate(finished, 1):
        results[number] = result
        images_done += len(plans[number].rows)
        progress("shards", images_done, source.listing.num_rows, f"images, {shards_done} of {len(plans)} shards")
    return [result for result in results if result is not None]


def _check_counts(
    config: DatasetConfig,
    dataset: str,
    plans: Sequence[plan.ShardPlan],
    results: Sequence[ShardResult],
    rejected: Counter[str],
) -> None:
    """Refuse to publish when an image is missing or counted twice, or when too many were rejected."""
    planned = np.concatenate([p.rows for p in plans])
    if len(np.unique(planned)) != len(planned) or len(results) != len(plans):
        raise AssertionError("the plan does not hold every image once")
    for p, result in zip(plans, results, strict=True):
        if result.entry.samples + result.entry.rejected != len(p.rows) or result.entry.name != p.name:
            raise IgptError(
                f"{dataset}: shard {p.name} accounts for {result.entry.samples + result.entry.rejected} of "
                f"{len(p.rows)} images; delete index/{p.name}.parquet and run the build again"
            )
    share = rejected.total() / len(planned)
    if share > config.max_reject_fraction:
        reasons = ", ".join(f"{count} {reason}" for reason, count in rejected.most_common())
        raise IgptError(
            f"{config.raw}: {rejected.total()} of {len(planned)} images were rejected ({reasons}), more than "
            f"max_reject_fraction {config.max_reject_fraction} allows; see {dataset}/quarantine, nothing was published"
        )
    if not any(result.entry.samples for result in results if result.entry.split == "train"):
        raise IgptError(f"{config.raw}: no image is left to train on; see {dataset}/quarantine, nothing was published")
