"""Publish an older snapshot anew, as the newest one: nothing is copied, and nothing made."""

from dataclasses import replace

from pipeline.dataset import record, snapshot
from pipeline.dataset.publish import commit
from pipeline.dataset.record import Publisher
from pipeline.dataset.snapshot import SCHEMA, Snapshot
from pipeline.errors import IgptError
from pipeline.store import lease, presence


def rollback(dataset: str, number: int, publisher: Publisher) -> Snapshot:
    """Publish snapshot `number` of a dataset anew; returns the new snapshot, which has the content of the old one.

    Raises IgptError when there is no such snapshot, when the newest has its content already, when a file of it is gone,
    or when a build is running.
    """
    target = snapshot.read(dataset, number)
    with lease.hold(target.dataset) as held, presence.building(target.dataset):
        newest = snapshot.read(dataset)
        if (newest.content_digest, newest.source_digest) == (target.content_digest, target.source_digest):
            raise IgptError(
                f"{target.dataset}: the newest snapshot, {newest.number}, has the content of snapshot {number} already"
            )
        new = replace(
            target,
            schema=SCHEMA,
            scans=(),
            earlier_digests=target.digests[1:] if target.schema < SCHEMA else target.earlier_digests,
        ).following(newest)
        commit(new, held.fence, _record(target, newest, publisher))
    return new


def _record(target: Snapshot, newest: Snapshot, publisher: Publisher) -> record.Record | None:
    """The record of the target, with where the raw images are today; None without one, which the next build writes."""
    known, today = record.read(target), record.read(newest)
    if known is None:
        return None
    if today is not None:
        known = known.moved_to(today.raw_root)
    return known.published(publisher, restores=target.number)
