"""Give a snapshot tags, or take them away: words of the users, in the record beside the manifest."""

from collections.abc import Collection
from dataclasses import replace

from pipeline.dataset import record, snapshot
from pipeline.errors import IgptError
from pipeline.store import lease


def tag(dataset: str, number: int, *, add: Collection[str] = (), remove: Collection[str] = ()) -> tuple[str, ...]:
    """Change the tags of a snapshot; returns those that it has then, sorted.

    Raises IgptError when there is no such snapshot, when an earlier version published it, so that it has no record, or
    when a build is running.
    """
    chosen = snapshot.read(dataset, number)
    with lease.hold(chosen.dataset) as held:
        known = record.read(chosen)
        if known is None:
            raise IgptError(
                f"{chosen.dataset}: snapshot {number} has no record to keep tags in, an earlier version published it; "
                "tag a later one, or the newest after the next build"
            )
        tags = tuple(sorted({*known.tags, *add} - {*remove}))
        held.fence.check()
        record.write(chosen, replace(known, tags=tags))
    return tags
