"""The build: source listing -> plan -> palette -> shards -> committed snapshot, with tasks on the Ray cluster."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import numpy as np

from pipeline.build.fit_palette import fit_palette
from pipeline.build.plan import Plan, Planner
from pipeline.build.run_plan import check_counts, make_shards, sort_shards
from pipeline.build.shard_tasks import ShardResult
from pipeline.build.source_state import SourceState, read_source_state
from pipeline.config import DatasetConfig
from pipeline.dataset import index, snapshot
from pipeline.dataset.publish import commit
from pipeline.dataset.snapshot import Snapshot
from pipeline.errors import IgptError
from pipeline.images import palette
from pipeline.progress import Progress, silent
from pipeline.source.raw_reads import SourceChangedError
from pipeline.store import objects, presence
from pipeline.store.lease import Fence

# If the source changes while it is read, the build starts again, with at most this many tries. The last one puts the
# changed images into quarantine instead; the next build recovers them.
_TRIES = 3


@dataclass(frozen=True, kw_only=True)
class PlannedBuild:
    """What a build would do, or has done."""

    plan: Plan | None
    """None when source and config are those of the newest snapshot."""
    changed_config: tuple[str, ...]
    """Fields of the config that differ from the parent snapshot's; any such field rebuilds everything."""
    palette: str
    """The origin of the palette: kept, given, fitted or refitted."""
    parent: int | None
    images_in: int
    left_out: dict[str, int]
    """Number of files that are no images by their names, by extension."""
    unlabelled: int


@dataclass(frozen=True, kw_only=True)
class BuildResult:
    """The snapshot that a build resulted in, and the time it took."""

    snapshot: Snapshot
    planned: PlannedBuild
    shards_reused: int
    """Number of shards that an earlier, interrupted build had finished."""
    images_taken_over: int
    """Number of unchanged images whose samples were copied into rewritten shards."""
    seconds: dict[str, float]
    """Time of each step on the driver: list, palette, shards, commit."""
    task_seconds: dict[str, float]
    """Time summed over all tasks, by step: read, decode, quantize, write."""

    @property
    def unchanged(self) -> bool:
        """Whether the snapshot existed already: same source, same config."""
        return self.planned.plan is None


Announce = Callable[[PlannedBuild], None]
# Holds the dataset of a URL exclusively within the block.
Exclusively = Callable[[str], AbstractContextManager[Fence | None]]


def _not_exclusively(dataset: str) -> AbstractContextManager[None]:
    return nullcontext()


def plan_build(config: DatasetConfig, *, refit_palette: bool = False, progress: Progress = silent) -> PlannedBuild:
    """What `build` would do, without writing anything. Raises IgptError for errors that show before a build."""
    with read_source_state(config, keep_scans=False, progress=progress) as state:
        return _Build(config, state, refit_palette, tolerant=False, progress=progress).dry_run()


def build(
    config: DatasetConfig,
    *,
    refit_palette: bool = False,
    progress: Progress = silent,
    announce: Announce = lambda planned: None,
    exclusively: Exclusively = _not_exclusively,
) -> BuildResult:
    """Build or update the dataset of a config from its source, on the cluster this process is connected to.

    `announce` is called with the plan before it is run; the dataset is written within `exclusively`. A dataset keeps
    its palette unless `refit_palette`. Raises IgptError, and publishes nothing, for an unusable source, store or
    config, when too many images are rejected, when the counts do not add up, or when another process has taken over.
    """
    tries = 1
    while True:
        began = time.perf_counter()
        try:
            with read_source_state(config, keep_scans=True, progress=progress) as state:
                attempt = _Build(config, state, refit_palette, tolerant=tries == _TRIES, progress=progress)
                attempt.seconds["list"] = time.perf_counter() - began
                return attempt.run(announce, exclusively)
        except SourceChangedError:
            if tries == _TRIES:
                raise
        tries += 1


class _Build:
    """One try of a build."""

    def __init__(
        self, config: DatasetConfig, state: SourceState, refit_palette: bool, *, tolerant: bool, progress: Progress
    ) -> None:
        self._config, self._state, self._refit = config, state, refit_palette
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
        state = self._state
        ready = self._ready_palette()
        if ready is not None and state.parent is not None and self._is_unchanged(palette.sha256(ready)):
            announce(planned := self._planned(None))
            return BuildResult(
                snapshot=state.parent,
                planned=planned,
                shards_reused=0,
                images_taken_over=0,
                seconds=self.seconds,
                task_seconds={},
            )
        palette_K3 = fit_palette(self._config, self._state, self._progress) if ready is None else ready
        sha256 = palette.sha256(palette_K3)
        self._lap("palette")
        announce(planned := self._planned(self._plan(sha256)))
        assert planned.plan is not None
        with exclusively(state.dataset) as fence, presence.building(state.dataset):
            objects.write_bytes(
                objects.join(state.dataset, snapshot.palette_path(sha256)), palette.to_bytes(palette_K3)
            )
            results = make_shards(state, planned.plan.work, self._config, palette_K3, self._tolerant, self._progress)
            self._lap("shards")
            new = self._snapshot(planned.plan, results, sha256, len(palette_K3))
            check_counts(new, len(state.rows), self._config)
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
        parent = self._state.parent
        same = parent is not None and parent.source_digest == self._state.source_digest
        return same and self._is_rerun(palette_sha256)

    def _is_rerun(self, palette_sha256: str) -> bool:
        """Whether this build would make the parent's shards from the same images: same config, same palette."""
        parent = self._state.parent
        return parent is not None and not self._changed_config() and parent.palette_sha256 == palette_sha256

    def _changed_config(self) -> tuple[str, ...]:
        parent, now = self._state.parent, self._config.fingerprint()
        return () if parent is None else tuple(name for name in now if parent.config.get(name) != now[name])

    def _planned(self, planned: Plan | None) -> PlannedBuild:
        parent = self._state.parent
        if self._config.palette is not None:
            origin = "given"
        elif self._keeps_palette():
            origin = "kept"
        else:
            origin = "fitted" if parent is None else "refitted"
        return PlannedBuild(
            plan=planned,
            changed_config=self._changed_config(),
            palette=origin,
            parent=None if parent is None else parent.number,
            images_in=len(self._state.rows),
            left_out=self._state.left_out,
            unlabelled=self._state.unlabelled,
        )

    def _plan(self, palette_sha256: str) -> Plan:
        state = self._state
        planner = Planner(state.rows, state.splits, self._config, self._config.recipe_digest(palette_sha256))
        if state.parent is None:
            return planner.full()
        if self._is_rerun(palette_sha256):
            return planner.rerun(state.parent.shards, index.parent_rows(state.parent))
        return replace(planner.full(), drop=state.parent.shards)

    def _keeps_palette(self) -> bool:
        parent = self._state.parent
        return not self._refit and parent is not None and parent.colours == self._config.colours

    def _ready_palette(self) -> np.ndarray | None:
        """The given palette, or the parent's, float32 [K, 3]; None when one is to be fitted.

        A dataset keeps its palette, because another one would change every token.
        """
        if self._config.palette is not None:
            return _given_palette(self._config)
        if self._keeps_palette() and self._state.parent is not None:
            return self._state.parent.palette()
        if not self._state.images("train"):
            raise IgptError(
                f"{self._config.raw}: no image falls into the training split; give more images or smaller fractions"
            )
        return None

    def _snapshot(self, planned: Plan, results: Sequence[ShardResult], sha256: str, colours: int) -> Snapshot:
        state, config = self._state, self._config
        entries = [*planned.keep, *(result.entry for result in results)]
        return Snapshot(
            number=1 if state.parent is None else state.parent.number + 1,
            parent=None if state.parent is None else state.parent.number,
            resolution=config.resolution,
            classes=state.classes,
            palette_sha256=sha256,
            colours=colours,
            config=config.fingerprint(),
            source_digest=state.source_digest,
            shards=sort_shards(entries),
            scans=state.scans,
            dataset=state.dataset,
        )


def _given_palette(config: DatasetConfig) -> np.ndarray:
    """The palette of the config's URL, float32 [K, 3]. Raises IgptError when it is missing or does not fit."""
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
