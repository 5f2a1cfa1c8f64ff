"""Who may work on a dataset or a training run: a lease in the object store, with fencing. The decisions are pure.

{folder}/lease/{term:08d}.json     who has the lease, created only where it is not there; the term is the fencing token
{folder}/lease/{term:08d}.renewed  written anew while the holder lives
{folder}/lease/{term:08d}.ended    the holder is done
A term is held once, so whoever finds another than his own to be the newest knows that he was given up for dead.
A listing of a folder is no snapshot of it: what is created or replaced meanwhile may be missing. So the term before the
newest is kept, and whoever has created a term looks whether a newer one exists. Nobody is dead who had no time to
renew while he was watched: after an outage or a standstill all leases look old.
"""

import enum
import json
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from pipeline.errors import IgptError
from pipeline.store import heartbeat, objects
from pipeline.store.conditional_create import AlreadyExistsError, create_bytes
from pipeline.store.objects import StoredFile

_RENEW_SECONDS = 5.0
# A holder that has not renewed its lease for so long is dead, or as good as dead: fencing keeps it from publishing.
DEAD_SECONDS = 30.0
_LOOK_SECONDS = 1.0


class LeaseHeldError(IgptError):
    """Another process has the lease and is alive."""


class LeaseLostError(IgptError):
    """Another process took the lease over; what this one made must not be published."""


@dataclass(frozen=True, kw_only=True)
class Sight:
    """What one look at a lease shows of its newest term."""

    term: int
    """0: nobody has ever had it."""
    renewal: str
    """Changes whenever the holder renews."""
    age: float
    """Seconds since it was renewed, by the store's clock; 0 where the store does not tell."""
    ended: bool


class Step(enum.Enum):
    """What to do about a lease that one wants."""

    TAKE = "take the next term"
    WAIT = "look again: its holder may be alive"
    REFUSE = "its holder is alive"


def sight(files: Iterable[StoredFile], clock: str) -> Sight:
    """What a listing of a lease's folder shows; `clock` is the URL of an object that was written just now."""
    found = {file.url.rsplit("/", 1)[-1]: file for file in files}
    now = max((file.modified for file in found.values() if file.url == clock), default=0.0)
    term = newest_term(found)
    created, renewed = found.get(f"{term:08d}.json"), found.get(f"{term:08d}.renewed")
    last = max((file.modified for file in (created, renewed) if file is not None), default=0.0)
    return Sight(
        term=term,
        renewal="" if renewed is None else renewed.etag,
        age=max(0.0, now - last) if now and last else 0.0,
        ended=f"{term:08d}.ended" in found,
    )


def newest_term(names: Iterable[str]) -> int:
    """The highest term among the names in a lease's folder; 0 without one."""
    return max((int(name[:8]) for name in names if name[:8].isdigit() and name.endswith(".json")), default=0)


def next_step(first: Sight, now: Sight, waited: float, dead_seconds: float = DEAD_SECONDS) -> Step:
    """Decide from the first and the last look, `waited` seconds apart.

    Who renews while one looks is alive; who does not for `dead_seconds`, by the store's clock or ours, is dead, and has
    been watched for at least half of them.
    """
    if not now.term or now.ended:
        return Step.TAKE
    if (now.term, now.renewal) != (first.term, first.renewal):
        return Step.REFUSE
    return Step.TAKE if waited > dead_seconds / 2 and max(waited, now.age) > dead_seconds else Step.WAIT


@dataclass(frozen=True, kw_only=True)
class Fence:
    """A fencing token: lets a holder's results pass as long as nobody has taken its lease over. Travels to workers."""

    folder: str
    """What is leased: a dataset, or the folder of a run."""
    term: int
    holder: str
    """Id of who has it: on a store without conditional writes a late creator may have overwritten the term."""

    def check(self) -> None:
        """Raise LeaseLostError when the newest term is another's. To be called right before a result is published.

        Between this look and the publication time may pass; so what is published must be harmless even then: a
        snapshot is created only where none is, and a checkpoint is known by the checksums of its files.
        """
        names = (file.url.rsplit("/", 1)[-1] for file in objects.list_files(_room(self.folder)))
        if newest_term(names) != self.term or _details(self.folder, self.term).get("id") != self.holder:
            raise LeaseLostError(
                f"{self.folder}: another process took over while this one did not answer; nothing more is published "
                "here, the other one goes on"
            )


@dataclass(frozen=True, kw_only=True)
class Held:
    """A lease that this process has."""

    fence: Fence
    taken_over_from: Mapping[str, str] | None
    """What the holder of the term before had said about itself, if it died with the lease."""


def process_name() -> str:
    """This process, for people."""
    return f"process {os.getpid()} on {socket.gethostname()}"


@contextmanager
def hold(
    folder: str,
    about: Mapping[str, str] | None = None,
    *,
    dead_seconds: float = DEAD_SECONDS,
    say: Callable[[str], None] = lambda line: None,
) -> Iterator[Held]:
    """Have the lease of a folder for the length of the block; it is renewed meanwhile and ended afterwards.

    `about` is kept with it, for whoever finds it abandoned. A holder that died is waited for until that is certain.
    Raises LeaseHeldError when the holder is alive.
    """
    details = {"who": process_name(), **(about or {})}
    held = _acquire(folder, details, dead_seconds, say)
    place = objects.join(_room(folder), f"{held.fence.term:08d}")
    every = min(_RENEW_SECONDS, dead_seconds / 4)
    try:
        with heartbeat.beating(f"{place}.renewed", lambda count: str(count).encode(), every):
            yield held
    finally:
        with suppress(IgptError, OSError):  # without it the next one waits until this one is certainly dead
            objects.write_bytes(f"{place}.ended", b"", patient=False)


def _acquire(folder: str, details: Mapping[str, str], dead_seconds: float, say: Callable[[str], None]) -> Held:
    """Take the next term, as soon as the holder of the newest is done or certainly dead."""
    first = now = _look(folder)
    began = looked = time.monotonic()
    while True:
        step = next_step(first, now, looked - began, dead_seconds)
        if step is Step.REFUSE:
            raise LeaseHeldError(
                f"{folder}: {_describe(_details(folder, now.term))} is at work on it; wait until it ends, or cancel it"
            )
        if step is Step.TAKE:
            before = None if now.ended or not now.term else _details(folder, now.term)
            if (fence := _create(folder, now.term + 1, details)) is not None:
                if before is not None:
                    say(f"{_describe(before)} died at work on {folder}; its work is taken over")
                return Held(fence=fence, taken_over_from=before)
        elif now is first:
            say(f"looking whether {_describe(_details(folder, now.term))}, which has the lease of {folder}, is alive")
        time.sleep(min(_LOOK_SECONDS, dead_seconds / 10))
        before_look = looked
        now, looked = _look(folder), time.monotonic()
        if looked - before_look > dead_seconds / 2:  # the store was away, or this machine stood still: nobody renewed
            first, began = now, looked


def _look(folder: str) -> Sight:
    clock = objects.join(_room(folder), f"look-{uuid.uuid4().hex}")
    objects.write_bytes(clock, b"")
    try:
        return sight(list(objects.list_files(_room(folder))), clock)
    finally:
        objects.delete(clock)


def _create(folder: str, term: int, details: Mapping[str, str]) -> Fence | None:
    """Create a term and forget those before the last; None when it is another's, or not the newest."""
    mine = objects.join(_room(folder), f"{term:08d}.json")
    fence = Fence(folder=folder, term=term, holder=uuid.uuid4().hex)
    try:
        create_bytes(mine, json.dumps({**details, "id": fence.holder}, sort_keys=True).encode())
    except AlreadyExistsError:
        return None
    files = {file.url: file.url.rsplit("/", 1)[-1] for file in objects.list_files(_room(folder))}
    if newest_term(files.values()) > term:  # between our look and our step terms have come, and maybe gone
        objects.delete(mine)
        return None
    with suppress(IgptError, OSError):  # they only take up room
        for url, name in files.items():
            if name[:8].isdigit() and int(name[:8]) < term - 1 and ".claims/" not in url:
                objects.delete(url, patient=False)
    return fence


def _details(folder: str, term: int) -> Mapping[str, str]:
    try:
        return dict(json.loads(objects.read_bytes(objects.join(_room(folder), f"{term:08d}.json"))))
    except (FileNotFoundError, ValueError):  # a newer term has come meanwhile
        return {}


def _describe(details: Mapping[str, str]) -> str:
    who = details.get("who", "another process")
    return f"{who} (flow run {details['flow_run']})" if details.get("flow_run") else who


def _room(folder: str) -> str:
    return objects.join(folder, "lease")
