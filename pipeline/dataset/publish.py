"""Publish a snapshot: verify that its files exist, create the manifest, then point LATEST at it."""

from pipeline.dataset import record as records
from pipeline.dataset.record import Record
from pipeline.dataset.snapshot import Snapshot, latest_number, read, snapshot_path
from pipeline.errors import IgptError
from pipeline.store import bulk, objects
from pipeline.store.conditional_create import AlreadyExistsError, create_bytes
from pipeline.store.lease import Fence


def commit(snapshot: Snapshot, fence: Fence | None = None, record: Record | None = None) -> None:
    """Publish a snapshot: verify that all files it names exist, create the manifest, then point LATEST at it.

    The record is written before the manifest. It names the manifest by its digest, so that one that a losing build has
    left is not taken for this snapshot's.

    Raises IgptError when another build published the same number first or took over this one's lease; the other's
    files are left untouched.
    """
    _check_files_exist(snapshot)
    if fence is not None:
        fence.check()
    if record is not None:
        records.write(snapshot, record)
    try:
        create_bytes(objects.join(snapshot.dataset, snapshot_path(snapshot.number)), snapshot.to_bytes())
    except AlreadyExistsError:
        existing = read(snapshot.dataset, snapshot.number)
        if existing.manifest_digest != snapshot.manifest_digest:
            _point_latest(snapshot.dataset, snapshot.number)  # the other build may have died before this step
            raise IgptError(
                f"{snapshot.dataset}: another build published snapshot {snapshot.number} meanwhile; run this one again"
            ) from None
    _point_latest(snapshot.dataset, snapshot.number)


def _check_files_exist(snapshot: Snapshot) -> None:
    sizes: dict[str, int] = {}
    for folder in ("shards", "index", "quarantine", "palettes", "counts", "scans"):
        sizes.update(bulk.sizes_below(objects.join(snapshot.dataset, folder)))
    for path in snapshot.paths:
        if objects.join(snapshot.dataset, path) not in sizes:
            raise IgptError(f"{snapshot.dataset}: {path} is missing; run the build again")
    for shard in snapshot.shards:
        size = sizes[objects.join(snapshot.dataset, shard.path)]
        if size != shard.bytes:
            raise IgptError(
                f"{snapshot.dataset}: {shard.path} has {size} bytes, {shard.bytes} were written; run the build again"
            )


def _point_latest(dataset: str, number: int) -> None:
    """Point LATEST at a snapshot, unless it points at a newer one already."""
    if (latest_number(dataset) or 0) < number:
        objects.write_bytes(objects.join(dataset, "LATEST"), f"{number}\n".encode())


def repair_latest(dataset: str) -> None:
    """Point LATEST at the newest snapshot, in case a build died between the two steps of its commit."""
    latest = latest_number(dataset) or 0
    newest = latest
    while objects.exists(objects.join(dataset, snapshot_path(newest + 1))):
        newest += 1
    if newest > latest:
        _point_latest(dataset, newest)
