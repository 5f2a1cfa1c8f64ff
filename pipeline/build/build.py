"""The build: source listing -> plan -> palette -> shards -> committed snapshot, with tasks on the Ray cluster."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import numpy as np

from pipeline.build import quarantine
from pipeline.build.count_pixels import PixelDifference
from pipeline.build.decode_rows import current_rule
from pipeline.build.fit_palette import fit_palette
from pipeline.build.plan import Plan, Planner
from pipeline.build.quarantine import SmallerQuarantine
from pipeline.build.run_plan import check_counts, make_shards
from pipeline.build.shard_tasks import ShardResult
from pipeline.build.source_state import SourceState, read_source_state
from pipeline.config import DatasetConfig
from pipeline.dataset import index, record, snapshot
from pipeline.dataset.keys import match
from pipeline.dataset.publish import commit
from pipeline.dataset.record import Publisher
from pipeline.dataset.snapshot import Snapshot, sort_shards
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
    """Number of images without a label."""
    unmatched_labels: int
    """Number of rows of the label file that name no image."""
    recovered: int = 0
    """Number of images that an older rule refused and that can be decoded now."""
    older_images: int = 0
    """Number of the parent's images that were decoded by another rule than today's."""
    older_rules: tuple[str, ...] = ()
    """Those rules."""
    rule: str = ""
    """Today's rule of decoding."""
    remake: bool = False
    """Whether those images are made anew."""
    moved_from: str | None = None
    """Where the raw images were for the parent, if that was elsewhere."""
    erased: int = 0
    """Number of raw images that are still there and were erased from the dataset."""


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


@dataclass(frozen=True, kw_only=True)
class _Wishes:
    """What a build is to do beyond what changed; see `build`."""

    refit_palette: bool
    remake: bool
    verify_bytes: bool


def plan_build(
    config: DatasetConfig,
    *,
    refit_palette: bool = False,
    remake: bool = False,
    verify_bytes: bool = False,
    progress: Progress = silent,
) -> PlannedBuild:
    """What `build` would do, without writing anything. Raises IgptError for errors that show before a build."""
    wishes = _Wishes(refit_palette=refit_palette, remake=remake, verify_bytes=verify_bytes)
    with read_source_state(config, keep_scans=False, verify_bytes=verify_bytes, progress=progress) as state:
        return _Build(config, state, wishes, tolerant=False, progress=progress).dry_run()


def build(
    config: DatasetConfig,
    *,
    refit_palette: bool = False,
    remake: bool = False,
    verify_bytes: bool = False,
    publisher: Publisher | None = None,
    progress: Progress = silent,
    announce: Announce = lambda planned: None,
    exclusively: Exclusively = _not_exclusively,
) -> BuildResult:
    """Build or update the dataset of a config from its source, on the cluster this process is connected to.

    `announce` is called with the plan before it is run; the dataset is written within `exclusively`. A dataset keeps
    its palette unless `refit_palette`, and images that an older rule of decoding made unless `remake`. With
    `verify_bytes` all images are read, and compared with the snapshot by their SHA-256.

    Raises IgptError, and publishes nothing, for an unusable source, store or config, when too many images are rejected
    or gone, when the counts do not add up, or when another process has taken over.
    """
    wishes = _Wishes(refit_palette=refit_palette, remake=remake, verify_bytes=verify_bytes)
    tries = 1
    while True:
        began = time.perf_counter()
        try:
            with read_source_state(config, keep_scans=True, verify_bytes=verify_bytes, progress=progress) as state:
                attempt = _Build(config, state, wishes, tolerant=tries == _TRIES, progress=progress)
                attempt.seconds["list"] = time.perf_counter() - began
                return attempt.run(announce, exclusively, publisher or Publisher())
        except SourceChangedError:
            if tries == _TRIES:
                raise
        tries += 1


class _Build:
    """One try of a build."""

    def __init__(
        self, config: DatasetConfig, state: SourceState, wishes: _Wishes, *, tolerant: bool, progress: Progress
    ) -> None:
        self._config, self._state, self._wishes = config, state, wishes
        self._tolerant, self._progress = tolerant, progress
        self._rule = current_rule()
        self._smaller: list[SmallerQuarantine] = []  # quarantines without images that can be decoded now
        self._recovered = 0
        self._is_refitted_to_the_same = False
        self.seconds: dict[str, float] = {}
        self._since = time.perf_counter()

    def _lap(self, step: str) -> None:
        now = time.perf_counter()
        self.seconds[step] = now - self._since
        self._since = now

    def dry_run(self) -> PlannedBuild:
        ready = self._ready_palette()
        return self._planned(self._plan("to be fitted" if ready is None else palette.sha256(ready)))

    def run(self, announce: Announce, exclusively: Exclusively, publisher: Publisher) -> BuildResult:
        ready = self._ready_palette()
        palette_K3 = fit_palette(self._config, self._state, self._progress) if ready is None else ready
        sha256 = palette.sha256(palette_K3)
        self._lap("palette")
        plan = self._plan(sha256)
        announce(planned := self._planned(plan))
        state = self._state
        if plan is None:
            assert state.parent is not None
            self._update_record(state.parent, exclusively)
            return BuildResult(
                snapshot=state.parent,
                planned=planned,
                shards_reused=0,
                images_taken_over=0,
                seconds=self.seconds,
                task_seconds={},
            )
        pixels = PixelDifference()
        with exclusively(state.dataset) as fence, presence.building(state.dataset):
            state.check_erasures()
            objects.write_bytes(
                objects.join(state.dataset, snapshot.palette_path(sha256)), palette.to_bytes(palette_K3)
            )
            quarantine.write(state.dataset, self._smaller)
            results = make_shards(
                state,
                plan.work,
                self._config,
                palette_K3,
                pixels,
                self._progress,
                tolerant=self._tolerant,
                trust_tags=not self._wishes.verify_bytes,
                retry=self._refused_by_another_rule(),
                remade=plan.remade,
            )
            self._lap("shards")
            erased = [key for result in results for key in result.erased]
            new = self._snapshot(plan, results, sha256, len(palette_K3), state.source_digest_without(erased))
            if erased and state.parent is not None and _is_the_same(new, state.parent):
                # All that is new are copies of erased images: nothing is to be published.
                state.keep_out(erased, fence)
                return BuildResult(
                    snapshot=state.parent,
                    planned=replace(planned, plan=None),
                    shards_reused=0,
                    images_taken_over=0,
                    seconds=self.seconds,
                    task_seconds={},
                )
            check_counts(new, len(state.rows) - len(erased), self._config)
            base, dropped = (state.parent, plan.drop) if self._is_rerun(sha256) else (None, ())
            new = replace(new, pixel_counts=pixels.write(new, base, dropped, self._progress))
            state.write_seen()
            state.keep_out(erased, fence)
            commit(new, fence, state.next_record(publisher, refused_by=self._rule))
            self._lap("commit")
        return BuildResult(
            snapshot=new,
            planned=planned,
            shards_reused=sum(result.reused for result in results),
            images_taken_over=sum(result.taken_over for result in results),
            seconds=self.seconds,
            task_seconds=dict(sum((Counter(result.seconds) for result in results), Counter())),
        )

    def _update_record(self, parent: Snapshot, exclusively: Exclusively) -> None:
        """Write the record of an unchanged snapshot anew, if the raw images moved or were read again."""
        state, known = self._state, self._state.record
        new = state.next_record(None, refused_by=self._rule)
        if new == known:
            return
        with exclusively(state.dataset) as fence, presence.building(state.dataset):
            state.check_erasures()
            state.write_seen()
            if fence is not None:
                fence.check()
            record.write(parent, new)

    def _is_rerun(self, palette_sha256: str) -> bool:
        """Whether this build would make the parent's shards from the same images: same config, same palette."""
        parent = self._state.parent
        same = not self._changed_config() or self._has_other_columns()
        return parent is not None and same and parent.palette_sha256 == palette_sha256

    def _has_other_columns(self) -> bool:
        """Whether the indexes have to be written anew, for other kept columns, and nothing else."""
        return self._changed_config() == ("keep_columns",)

    def _changed_config(self) -> tuple[str, ...]:
        parent = self._state.parent
        return () if parent is None else self._config.changed_fields(parent.config)

    def _planned(self, planned: Plan | None) -> PlannedBuild:
        parent = self._state.parent
        if self._config.palette is not None:
            origin = "given"
        elif self._keeps_palette() or self._is_refitted_to_the_same:
            origin = "kept"
        else:
            origin = "fitted" if parent is None else "refitted"
        older: Counter[str] = Counter()
        for shard in () if parent is None else parent.shards:
            older.update({str(part.by): part.images for part in shard.decoding if part.by != self._rule})
        return PlannedBuild(
            plan=planned,
            changed_config=self._changed_config(),
            palette=origin,
            parent=None if parent is None else parent.number,
            images_in=len(self._state.rows),
            left_out=self._state.left_out,
            unlabelled=self._state.unlabelled,
            unmatched_labels=self._state.unmatched_labels,
            recovered=self._recovered,
            older_images=older.total(),
            older_rules=tuple(sorted(older)),
            rule=str(self._rule),
            remake=self._wishes.remake,
            moved_from=self._state.moved_from,
            erased=self._state.listing.erased,
        )

    def _plan(self, palette_sha256: str) -> Plan | None:
        """What to do; None when the parent is what this build would make."""
        state, parent, remake = self._state, self._state.parent, self._wishes.remake
        recipe = self._config.recipe_digest(palette_sha256)
        self._is_refitted_to_the_same = parent is not None and parent.palette_sha256 == palette_sha256
        if parent is None:
            return Planner(state.rows, state.splits, self._config, recipe).full()
        if not self._is_rerun(palette_sha256):
            self._check_deletions(parent)
            self._state = state = state.anew()
            salted = recipe + (str(self._rule) if remake else "")  # or shards of an older rule would be found
            return replace(Planner(state.rows, state.splits, self._config, salted).full(), drop=parent.shards)
        remade = [remake and any(part.by != self._rule for part in shard.decoding) for shard in parent.shards]
        retried = None
        if self._refused_by_another_rule():
            retried = quarantine.retry(state, self._config, self._progress, unchanged_only=True)
            self._recovered = len(retried.rows)
        same = parent.source_digest == state.source_digest
        if same and not self._recovered and not any(remade) and not self._has_other_columns():
            return None
        self._check_deletions(parent)
        entries, before = parent.shards, state.parent_rows
        if retried is not None and self._recovered:
            self._smaller = quarantine.without(parent, retried)
            entries, before = tuple(shard.entry for shard in self._smaller), before.without(retried.keys)
        planner = Planner(state.rows, state.splits, self._config, recipe)
        plan = planner.rerun(
            entries, before, remake=remade, remake_by=str(self._rule), new_index=self._has_other_columns()
        )
        return replace(plan, new_images=plan.new_images - self._recovered)

    def _refused_by_another_rule(self) -> bool:
        """Whether the images in quarantine were last tried by another rule than today's."""
        known = self._state.record
        return known is None or known.refused_by != self._rule

    def _check_deletions(self, parent: Snapshot) -> None:
        """Raise IgptError when more of the parent's images are gone than may be.

        What was in quarantine does not count: a damaged container that is mended is gone as a whole.
        """
        before, allowed = self._state.parent_rows, self._config.max_deleted_fraction
        is_gone = match(before.keys, self._state.rows.keys) < 0
        if is_gone.sum() <= allowed * parent.images():
            return
        is_gone &= match(before.keys, quarantine.keys_of(parent)) < 0
        gone, problem = int(is_gone.sum()), self._state.problem
        if gone <= allowed * parent.images():
            return
        why = "Is a disk not mounted?" if problem is None else f"{problem}."
        raise IgptError(
            f"{self._state.raw_root}: {gone:,} of the {parent.images():,} images of snapshot {parent.number} are gone, "
            f"more than max_deleted_fraction {allowed} allows; nothing was published. {why} If they are meant to be "
            "gone, set max_deleted_fraction=1 for this build"
        )

    def _keeps_palette(self) -> bool:
        parent = self._state.parent
        return not self._wishes.refit_palette and parent is not None and parent.colours == self._config.colours

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

    def _snapshot(
        self, planned: Plan, results: Sequence[ShardResult], sha256: str, colours: int, source_digest: str
    ) -> Snapshot:
        state, config = self._state, self._config
        made = [result.entry for result in results if index.accounted(result.entry) or not result.erased]
        entries = [*planned.keep, *made]
        return Snapshot(
            number=1,
            parent=None,
            resolution=config.resolution,
            classes=state.classes,
            palette_sha256=sha256,
            colours=colours,
            config=config.fingerprint(),
            source_digest=source_digest,
            shards=sort_shards(entries),
            dataset=state.dataset,
        ).following(state.parent)


def _is_the_same(new: Snapshot, parent: Snapshot) -> bool:
    return (new.content_digest, new.source_digest) == (parent.content_digest, parent.source_digest)


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
