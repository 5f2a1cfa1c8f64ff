"""The build: source listing -> plan -> palette -> shards -> committed snapshot, its tasks run on the Ray cluster."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import numpy as np

from pipeline.build import plan
from pipeline.build.plan import Plan, Planner
from pipeline.build.run_plan import check_counts, in_order, make_shards
from pipeline.build.shard_tasks import ShardResult, count_colours
from pipeline.build.source_state import Survey, survey
from pipeline.cluster import tasks
from pipeline.config import DatasetConfig
from pipeline.dataset import index, snapshot
from pipeline.dataset.publish import commit
from pipeline.dataset.snapshot import Snapshot
from pipeline.errors import IgptError
from pipeline.images import palette
from pipeline.partition import divide
from pipeline.progress import Progress, silent
from pipeline.source.raw_reads import SourceChangedError
from pipeline.store import objects, presence
from pipeline.store.lease import Fence

_IMAGES_PER_COUNT = 500
# A source that changes while it is read is listed and planned anew, this often in all; the last time, images that
# changed are put into quarantine, and the next build mends them.
_TRIES = 3


@dataclass(frozen=True, kw_only=True)
class PlannedBuild:
    """What a build of a source would do, or has done, to its dataset."""

    plan: Plan | None
    """None when the source and the config are those of the newest snapshot."""
    changed_config: tuple[str, ...]
    """Fields of the config that differ from the parent snapshot's, for which everything is made anew."""
    palette: str
    """What happens to the palette: kept, given, fitted or refitted."""
    parent: int | None
    images_in: int
    ignored_files: int
    unlabelled: int


@dataclass(frozen=True, kw_only=True)
class BuildResult:
    """The snapshot that a build ended with, and what it took."""

    snapshot: Snapshot
    planned: PlannedBuild
    shards_reused: int
    """Shards that an earlier, interrupted build had finished."""
    images_taken_over: int
    """Unchanged images of rewritten shards, whose samples were copied."""
    seconds: dict[str, float]
    """Time of each step on the driver: list, palette, shards, commit."""
    task_seconds: dict[str, float]
    """Time summed over the tasks: read, decode, quantize, write."""

    @property
    def unchanged(self) -> bool:
        """Whether the snapshot was there already: same source, same config."""
        return self.planned.plan is None

    @property
    def images_in(self) -> int:
        """Images that the source lists."""
        return self.planned.images_in


Announce = Callable[[PlannedBuild], None]
# Given a dataset, has it for oneself for the length of a block.
Exclusively = Callable[[str], AbstractContextManager[Fence | None]]


def _not_exclusively(dataset: str) -> AbstractContextManager[None]:
    return nullcontext()


def plan_build(config: DatasetConfig, *, refit_palette: bool = False, progress: Progress = silent) -> PlannedBuild:
    """What `build` would do; nothing is written. Raises IgptError as it does, as far as it can be told beforehand."""
    with survey(config, keep_scans=False, progress=progress) as found:
        return _Build(config, found, refit_palette, tolerant=False, progress=progress).dry_run()


def build(
    config: DatasetConfig,
    *,
    refit_palette: bool = False,
    progress: Progress = silent,
    announce: Announce = lambda planned: None,
    exclusively: Exclusively = _not_exclusively,
) -> BuildResult:
    """Bring the dataset that the config describes up to its source, on the cluster this process is connected to.

    `announce` hears what is to be done before it is, and what is written to the dataset is written inside of
    `exclusively`. The palette stays with the dataset unless `refit_palette`. Raises IgptError for a source, a store or
    a config that cannot be used, when too many images are rejected, when the counts do not add up, or when the fence
    lets nothing pass any more; nothing is published then.
    """
    for last in (False,) * (_TRIES - 1) + (True,):
        began = time.perf_counter()
        try:
            with survey(config, keep_scans=True, progress=progress) as found:
                running = _Build(config, found, refit_palette, tolerant=last, progress=progress)
                running.seconds["list"] = time.perf_counter() - began
                return running.run(announce, exclusively)
        except SourceChangedError:
            if last:
                raise
    raise AssertionError("the last try returns or raises")


class _Build:
    """One try to build."""

    def __init__(
        self, config: DatasetConfig, found: Survey, refit_palette: bool, *, tolerant: bool, progress: Progress
    ) -> None:
        self._config, self._found, self._refit = config, found, refit_palette
        self._tolerant, self._progress = tolerant, progress
        self.seconds: dict[str, float] = {}
        self._since = time.perf_counter()

    def _lap(self, step: str) -> None:
        now = time.perf_counter()
        self.seconds[step] = now - self._since
        self._since = now

    def dry_run(self) -> PlannedBuild:
        ready = self._ready_palette()
        if ready is None:
            return self._planned(self._plan("to be fitted"))
        sha256 = palette.sha256(ready)
        return self._planned(None if self._is_unchanged(sha256) else self._plan(sha256))

    def run(self, announce: Announce, exclusively: Exclusively) -> BuildResult:
        found = self._found
        ready = self._ready_palette()
        if ready is not None and found.parent is not None and self._is_unchanged(palette.sha256(ready)):
            announce(planned := self._planned(None))
            return BuildResult(
                snapshot=found.parent,
                planned=planned,
                shards_reused=0,
                images_taken_over=0,
                seconds=self.seconds,
                task_seconds={},
            )
        palette_K3 = self._fit_palette() if ready is None else ready
        sha256 = palette.sha256(palette_K3)
        self._lap("palette")
        announce(planned := self._planned(self._plan(sha256)))
        assert planned.plan is not None
        with exclusively(found.dataset) as fence, presence.building(found.dataset):
            objects.write_bytes(
                objects.join(found.dataset, snapshot.palette_path(sha256)), palette.to_bytes(palette_K3)
            )
            results = make_shards(found, planned.plan.work, self._config, palette_K3, self._tolerant, self._progress)
            self._lap("shards")
            new = self._snapshot(planned.plan, results, sha256, len(palette_K3))
            check_counts(new, len(found.rows), self._config)
            commit(new, fence)
            self._lap("commit")
        return BuildResult(
            snapshot=new,
            planned=planned,
            shards_reused=sum(result.reused for result in results),
            images_taken_over=sum(result.taken_over for result in results),
            seconds=self.seconds,
            task_seconds=dict(sum((Counter(result.seconds) for result in results), Counter())),
        )

    def _is_unchanged(self, palette_sha256: str) -> bool:
        parent = self._found.parent
        same = parent is not None and parent.source_digest == self._found.source_digest
        return same and self._is_rerun(palette_sha256)

    def _is_rerun(self, palette_sha256: str) -> bool:
        """Whether what the parent snapshot has is what this build would make of the same images."""
        parent = self._found.parent
        return parent is not None and not self._changed_config() and parent.palette_sha256 == palette_sha256

    def _changed_config(self) -> tuple[str, ...]:
        parent, now = self._found.parent, self._config.fingerprint()
        return () if parent is None else tuple(name for name in now if parent.config.get(name) != now[name])

    def _planned(self, planned: Plan | None) -> PlannedBuild:
        parent = self._found.parent
        if self._config.palette is not None:
            what = "given"
        elif self._keeps_palette():
            what = "kept"
        else:
            what = "fitted" if parent is None else "refitted"
        return PlannedBuild(
            plan=planned,
            changed_config=self._changed_config(),
            palette=what,
            parent=None if parent is None else parent.number,
            images_in=len(self._found.rows),
            ignored_files=self._found.ignored_files,
            unlabelled=self._found.unlabelled,
        )

    def _plan(self, palette_sha256: str) -> Plan:
        found = self._found
        planner = Planner(found.rows, found.splits, self._config, self._config.recipe_digest(palette_sha256))
        if found.parent is None:
            return planner.full()
        if self._is_rerun(palette_sha256):
            return planner.rerun(found.parent.shards, index.parent_rows(found.parent))
        return replace(planner.full(), drop=found.parent.shards)

    def _keeps_palette(self) -> bool:
        parent = self._found.parent
        return not self._refit and parent is not None and parent.colours == self._config.colours

    def _ready_palette(self) -> np.ndarray | None:
        """The palette of the build, float32 [K, 3]: the given one, or the parent's; None when one is to be fitted.

        The palette stays with the dataset unless asked: another one would change every token.
        """
        if self._config.palette is not None:
            return _given_palette(self._config)
        if self._keeps_palette() and self._found.parent is not None:
            return self._found.parent.palette()
        if not self._found.images("train"):
            raise IgptError(
                f"{self._config.raw}: no image falls into the training split; give more images or smaller fractions"
            )
        return None

    def _fit_palette(self) -> np.ndarray:
        config, found = self._config, self._found
        rows = plan.sample_for_palette(found.rows, found.splits, config)
        parts = divide(rows, _IMAGES_PER_COUNT)
        histogram = palette.ColourHistogram()
        done = 0
        self._progress("palette", 0, len(rows), "images")
        calls = ((table, False) for table in found.listing.gather(parts))
        counted = tasks.map_tasks(count_colours, calls, shared=(config,), after_crash=lambda call: (call[0], True))
        for number, each in counted:
            histogram.merge(each)
            done += len(parts[number])
            self._progress("palette", done, len(rows), "images")
        if not histogram.counts.any():
            raise IgptError(
                f"{config.raw}: none of {len(rows)} sampled images could be decoded; is this the right prefix?"
            )
        return palette.fit(histogram, config.colours, config.seed)

    def _snapshot(self, planned: Plan, results: Sequence[ShardResult], sha256: str, colours: int) -> Snapshot:
        found, config = self._found, self._config
        entries = [*planned.keep, *(result.entry for result in results)]
        return Snapshot(
            number=1 if found.parent is None else found.parent.number + 1,
            parent=None if found.parent is None else found.parent.number,
            resolution=config.resolution,
            classes=found.classes,
            palette_sha256=sha256,
            colours=colours,
            config=config.fingerprint(),
            source_digest=found.source_digest,
            shards=in_order(entries),
            scans=found.scans,
            dataset=found.dataset,
        )


def _given_palette(config: DatasetConfig) -> np.ndarray:
    """The palette that the config names, float32 [K, 3]. Raises IgptError when it is not there or does not fit."""
    url = objects.absolute(config.palette or "")
    try:
        palette_K3 = palette.from_bytes(objects.read_bytes(url), url)
    except (FileNotFoundError, IsADirectoryError):
        raise IgptError(f"{url}: no palette there; correct the URL or leave palette empty to fit one") from None
    if len(palette_K3) != config.colours:
        raise IgptError(
            f"{url} has {len(palette_K3)} colours and colours is {config.colours}: set colours to {len(palette_K3)}"
        )
    return palette_K3
