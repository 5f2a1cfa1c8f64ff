"""Publishing a snapshot: everything in place, then the manifest, which must not be there yet, then LATEST."""

from pipeline.dataset.snapshot import Snapshot, latest_number, read, snapshot_path
from pipeline.errors import IgptError
from pipeline.store import bulk, objects
from pipeline.store.conditional_create import AlreadyExistsError, create_bytes
from pipeline.store.lease import Fence


def commit(snapshot: Snapshot, fence: Fence | None = None) -> None:
    """Publish a snapshot: verify that everything it names is in place, create the manifest, then point LATEST at it.

    Raises IgptError when another builder has published the same number first, or has taken over the lease of this one;
    nothing of its work is touched.
    """
    _check_in_place(snapshot)
    if fence is not None:
        fence.check()
    try:
        create_bytes(objects.join(snapshot.dataset, snapshot_path(snapshot.number)), snapshot.to_bytes())
    except AlreadyExistsError:
        existing = read(snapshot.dataset, snapshot.number)
        if existing.digest != snapshot.digest:
            _point_latest(snapshot.dataset, snapshot.number)  # whoever published it may have died before this step
            raise IgptError(
                f"{snapshot.dataset}: another build published snapshot {snapshot.number} meanwhile; run this one again"
            ) from None
    _point_latest(snapshot.dataset, snapshot.number)


def _check_in_place(snapshot: Snapshot) -> None:
    there: dict[str, int] = {}
    for folder in ("shards", "index", "quarantine", "palettes", "scans"):
        there.update(bulk.sizes_below(objects.join(snapshot.dataset, folder)))
    for path in snapshot.paths:
        if objects.join(snapshot.dataset, path) not in there:
            raise IgptError(f"{snapshot.dataset}: {path} is not in place; run the build again")
    for shard in snapshot.shards:
        size = there[objects.join(snapshot.dataset, shard.path)]
        if size != shard.bytes:
            raise IgptError(
                f"{snapshot.dataset}: {shard.path} has {size} bytes, {shard.bytes} were written; run the build again"
            )


def _point_latest(dataset: str, number: int) -> None:
    """Name a snapshot's number as the newest, unless a newer one is named already."""
    if (latest_number(dataset) or 0) < number:
        objects.write_bytes(objects.join(dataset, "LATEST"), f"{number}\n".encode())


def heal_latest(dataset: str) -> None:
    """Point LATEST at the newest snapshot, where a builder died between the two steps of its commit."""
    latest = latest_number(dataset) or 0
    newest = latest
    while objects.exists(objects.join(dataset, snapshot_path(newest + 1))):
        newest += 1
    if newest > latest:
        _point_latest(dataset, newest)
