"""Retry the images in quarantine: those that can be decoded now go into new shards."""

from dataclasses import dataclass, replace

import numpy as np

from pipeline.build import quarantine
from pipeline.build.count_pixels import PixelDifference
from pipeline.build.decode_rows import current_rule
from pipeline.build.plan import Planner
from pipeline.build.quarantine import Retried
from pipeline.build.run_plan import check_counts, make_shards
from pipeline.build.source_state import SourceState, read_source_state
from pipeline.config import DatasetConfig
from pipeline.dataset import index
from pipeline.dataset.keys import Keys, match, source_digest
from pipeline.dataset.publish import commit
from pipeline.dataset.record import Publisher
from pipeline.dataset.snapshot import SCHEMA, Snapshot, sort_shards
from pipeline.errors import IgptError
from pipeline.progress import Progress, silent
from pipeline.store import lease, presence


@dataclass(frozen=True, kw_only=True)
class RetryResult:
    """The outcome of retrying the images in quarantine."""

    snapshot: Snapshot
    """The new snapshot, or the old one when no image was recovered."""
    tried: int
    recovered: int
    gone: int
    """Number of images in quarantine that are no longer in the source; the next build drops them."""


def retry_failed(
    config: DatasetConfig, *, publisher: Publisher | None = None, progress: Progress = silent
) -> RetryResult:
    """Decode the newest snapshot's images in quarantine again, except duplicates, and publish the recovered ones.

    Other changes of the source are left to the next build. Raises IgptError when there is no snapshot, when the config
    is not the snapshot's, or when a build is running.
    """
    with read_source_state(config, keep_scans=True, progress=progress) as state:
        parent = state.parent
        if parent is None:
            raise IgptError(f"{state.dataset}: no dataset snapshot there; build one with `igpt dataset build`")
        changed = config.changed_fields(parent.config)
        if changed:
            raise IgptError(
                f"{state.dataset}: {', '.join(changed)} differ from snapshot {parent.number}'s; give its config, or "
                "run `igpt dataset build`"
            )
        retried = quarantine.retry(state, config, progress)
        result = RetryResult(snapshot=parent, tried=retried.tried, recovered=len(retried.rows), gone=retried.gone)
        if not result.recovered:
            return result
        with lease.hold(state.dataset) as held, presence.building(state.dataset):
            state.check_erasures()
            new = _recover(state, parent, retried, config, progress, held.fence)
            state.write_seen()
            commit(new, held.fence, state.next_record(publisher or Publisher(), refused_by=current_rule()))
        return replace(result, snapshot=new)


def _recover(
    state: SourceState,
    parent: Snapshot,
    retried: Retried,
    config: DatasetConfig,
    progress: Progress,
    fence: lease.Fence,
) -> Snapshot:
    """Write the recovered rows into new shards and remove them from quarantine; returns the snapshot to commit."""
    planner = Planner(state.rows, state.splits, config, config.recipe_digest(parent.palette_sha256))
    plans = planner.append(retried.rows, parent.shards)
    pixels = PixelDifference()
    results = make_shards(state, plans, config, parent.palette(), pixels, progress, tolerant=True)
    erased = [key for result in results for key in result.erased]
    smaller = quarantine.without(parent, retried)
    quarantine.write(parent.dataset, smaller)
    new = replace(
        parent,
        classes=state.classes,
        source_digest=_digest(state, parent, retried.rows, erased),
        shards=sort_shards([*(shard.entry for shard in smaller), *(result.entry for result in results)]),
        schema=SCHEMA,
        scans=(),
    ).following(parent)
    check_counts(new, len(state.parent_rows) - len(erased), config)
    state.keep_out(erased, fence)
    return replace(new, pixel_counts=pixels.write(new, parent, (), progress))


def _digest(state: SourceState, parent: Snapshot, rows: np.ndarray, erased: list[str]) -> str:
    """source_digest of the new snapshot: the parent's images, the recovered ones with current versions and splits."""
    before = state.parent_rows
    splits = index.splits_of(parent, before)
    versions = before.versions.copy()
    positions = match(state.rows.keys.take(rows), before.keys)
    versions[positions], splits[positions] = state.rows.versions[rows], state.splits[rows]
    kept = np.setdiff1d(np.arange(len(before)), match(Keys.of(erased), before.keys))
    return source_digest(before.keys.take(kept), versions[kept], splits[kept])
