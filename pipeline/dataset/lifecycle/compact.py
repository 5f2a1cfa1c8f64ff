"""Publish a snapshot whose small shards are joined into full ones: the same images and tokens, in fewer files."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipeline.cluster import tasks
from pipeline.dataset import index, record, snapshot
from pipeline.dataset.lifecycle.assemble import Assembly, assemble
from pipeline.dataset.publish import commit
from pipeline.dataset.record import Publisher
from pipeline.dataset.snapshot import SCHEMA, SPLITS, ShardEntry, Snapshot, sort_shards
from pipeline.errors import IgptError
from pipeline.hashing import digest
from pipeline.progress import Progress, silent
from pipeline.store import lease, objects, presence


@dataclass(frozen=True, kw_only=True)
class Compacted:
    """What a compaction did, or would do."""

    snapshot: Snapshot
    """The new snapshot, or the newest one where nothing is to be joined or nothing was written."""
    joined: int
    """Number of small shards that are joined."""
    made: int
    """Number of shards that take their place."""
    images: int
    """Number of images in them, those in quarantine included."""
    bytes: int
    """Of the shards that are read and written."""

    @property
    def nothing_to_do(self) -> bool:
        """Whether no two small shards of a split fit into one."""
        return not self.joined


def plan(shards: Sequence[ShardEntry], full: int) -> list[Assembly]:
    """Which shards become one: small ones of a split in their order, up to `full` images each. Pure.

    Small is a shard of at most half as many images; those in quarantine count. A build divides images into shards of
    nearly equal size, none of which is so small, but for the last of a split.
    """
    assemblies = []
    for split in SPLITS:
        group: list[ShardEntry] = []
        small = [shard for shard in shards if shard.split == split and 2 * index.accounted(shard) <= full]
        for shard in small:
            if sum(map(index.accounted, group)) + index.accounted(shard) > full:
                assemblies.append(group)
                group = []
            group = [*group, shard]
        assemblies.append(group)
    return [_assembly(group) for group in assemblies if len(group) > 1]


def _assembly(group: Sequence[ShardEntry]) -> Assembly:
    first = group[0]
    content = digest(["compact", [[shard.name, shard.sha256, shard.index_sha256] for shard in group]])
    return Assembly(name=f"{first.split}-{first.number:06d}-{content[:16]}", pieces=tuple(group))


def compact(
    dataset: str,
    publisher: Publisher,
    *,
    dry_run: bool = False,
    progress: Progress = silent,
    run: Callable[..., Any] | None = None,
) -> Compacted:
    """Publish the newest snapshot with its small shards joined; publishes nothing where there are none.

    `run` runs the tasks, by default on the cluster. Run again after a crash, it makes the same files. Raises IgptError
    when a file is missing or damaged, or when a build is running.
    """
    if dry_run:
        newest = snapshot.read(dataset)
        return _outcome(newest, plan(newest.shards, _full(newest)))
    dataset = objects.absolute(dataset)
    snapshot.read(dataset)
    with lease.hold(dataset) as held, presence.building(dataset):
        newest = snapshot.read(dataset)
        assemblies = plan(newest.shards, _full(newest))
        outcome = _outcome(newest, assemblies)
        if outcome.nothing_to_do:
            return outcome
        made = _make(newest, assemblies, progress, run)
        replaced = {piece.name for assembly in assemblies for piece in assembly.pieces}
        kept = [shard for shard in newest.shards if shard.name not in replaced]
        new = replace(newest, schema=SCHEMA, scans=(), shards=sort_shards([*kept, *made]), earlier_digests=())
        _check(newest, new)
        beside = record.read(newest)
        new = new.following(newest)
        commit(new, held.fence, None if beside is None else beside.published(publisher))
    return replace(outcome, snapshot=new)


def _full(of: Snapshot) -> int:
    return int(str(of.config["samples_per_shard"]))


def _outcome(newest: Snapshot, assemblies: Sequence[Assembly]) -> Compacted:
    pieces = [piece for assembly in assemblies for piece in assembly.pieces]
    return Compacted(
        snapshot=newest,
        joined=len(pieces),
        made=len(assemblies),
        images=sum(map(index.accounted, pieces)),
        bytes=sum(piece.bytes for piece in pieces),
    )


def _make(
    newest: Snapshot, assemblies: Sequence[Assembly], progress: Progress, run: Callable[..., Any] | None
) -> list[ShardEntry]:
    progress("compact", 0, len(assemblies), "shards")
    shared = (replace(newest, shards=()), record.of_addresses(newest))
    made = {}
    for number, assembled in (run or tasks.map_tasks)(assemble, ((one,) for one in assemblies), shared=shared):
        assert assembled.entry is not None, "nothing is left out"
        made[number] = assembled.entry
        progress("compact", len(made), len(assemblies), "shards")
    return [made[number] for number in range(len(assemblies))]


def _check(before: Snapshot, after: Snapshot) -> None:
    """Raise IgptError unless each image and sample is there once."""
    for split in SPLITS:
        counts = [
            Counter(samples=of.samples(split), images=of.images(split))
            + sum((Counter(shard.rejected) for shard in of.shards if shard.split == split), Counter())
            for of in (before, after)
        ]
        if counts[0] != counts[1]:
            raise IgptError(
                f"{before.dataset}: the joined shards of the {split} split hold {counts[1].total()} of "
                f"{counts[0].total()}, nothing was published; report this"
            )
