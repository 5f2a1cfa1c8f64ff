"""A lease in the object store, with fencing: at most one process works on a dataset or a training run.

{folder}/lease/{term:08d}.json     the holder of a term, created conditionally; the term is the fencing token
{folder}/lease/{term:08d}.renewed  rewritten while the holder is alive
{folder}/lease/{term:08d}.ended    the holder has finished
A term is held by one process. A holder that sees a newer term than its own knows that it was declared dead.
A listing is not atomic: it may miss objects that are created or replaced meanwhile. So the second newest term is kept,
and a process that has created a term checks that there is no newer one. A holder counts as dead only after it had a
chance to renew while it was watched: after an outage or a suspended machine all leases look old.
The decisions (`observation`, `next_step`) are pure.
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
# A holder that has not renewed for this long counts as dead. Should it be alive, fencing stops it from publishing.
DEAD_SECONDS = 30.0
_OBSERVE_SECONDS = 1.0


class LeaseHeldError(IgptError):
    """Another process holds the lease and is alive."""


class LeaseLostError(IgptError):
    """Another process took over the lease; this process must not publish its results."""


@dataclass(frozen=True, kw_only=True)
class Observation:
    """The newest term of a lease at one moment."""

    term: int
    """0: the lease was never held."""
    renewal: str
    """Changes whenever the holder renews."""
    age: float
    """Seconds since the last renewal, by the store's clock; 0 where the store has no times."""
    ended: bool


class Step(enum.Enum):
    """What a process that wants a lease does next."""

    TAKE = "take the next term"
    WAIT = "observe again: its holder may be alive"
    REFUSE = "its holder is alive"


def observation(files: Iterable[StoredFile], clock: str) -> Observation:
    """What a listing of a lease's folder says; `clock` is the URL of an object that was written just now."""
    by_name = {objects.name_of(file.url): file for file in files}
    now = max((file.modified for file in by_name.values() if file.url == clock), default=0.0)
    term = newest_term(by_name)
    created, renewed = by_name.get(f"{term:08d}.json"), by_name.get(f"{term:08d}.renewed")
    last = max((file.modified for file in (created, renewed) if file is not None), default=0.0)
    return Observation(
        term=term,
        renewal="" if renewed is None else renewed.etag,
        age=max(0.0, now - last) if now and last else 0.0,
        ended=f"{term:08d}.ended" in by_name,
    )


def newest_term(names: Iterable[str]) -> int:
    """The highest term among the file names in a lease's folder; 0 if there is none."""
    return max((int(name[:8]) for name in names if name[:8].isdigit() and name.endswith(".json")), default=0)


def next_step(first: Observation, now: Observation, waited: float, dead_seconds: float = DEAD_SECONDS) -> Step:
    """Decide from the first and the latest observation, `waited` seconds apart.

    A holder that renews in between is alive. One that has not renewed for `dead_seconds`, by the store's clock or ours,
    is dead, provided it was watched for at least half of that time.
    """
    if not now.term or now.ended:
        return Step.TAKE
    if (now.term, now.renewal) != (first.term, first.renewal):
        return Step.REFUSE
    return Step.TAKE if waited > dead_seconds / 2 and max(waited, now.age) > dead_seconds else Step.WAIT


@dataclass(frozen=True, kw_only=True)
class Fence:
    """A fencing token, sent to workers: a holder may publish as long as no other process took over its lease."""

    folder: str
    """What is leased: a dataset, or the folder of a run."""
    term: int
    holder: str
    """Id of the holder: on a store without conditional writes a late creator may have overwritten the term."""

    def check(self) -> None:
        """Raise LeaseLostError when another process holds the newest term. Call it right before publishing a result.

        Time may pass between this check and the publication, so a late publication must be harmless: a snapshot is
        created conditionally, and a checkpoint is identified by the checksums of its files.
        """
        names = (objects.name_of(file.url) for file in objects.list_files(_lease_folder(self.folder)))
        if newest_term(names) != self.term or _details(self.folder, self.term).get("id") != self.holder:
            raise LeaseLostError(
                f"{self.folder}: another process took over while this one did not respond; this one publishes nothing "
                "more, the other continues"
            )


@dataclass(frozen=True, kw_only=True)
class Held:
    """A lease that this process holds."""

    fence: Fence
    taken_over_from: Mapping[str, str] | None
    """Details of the previous holder, if it died with the lease."""


def process_name() -> str:
    """This process, in words for people."""
    return f"process {os.getpid()} on {socket.gethostname()}"


@contextmanager
def hold(
    folder: str,
    about: Mapping[str, str] | None = None,
    *,
    dead_seconds: float = DEAD_SECONDS,
    say: Callable[[str], None] = lambda line: None,
) -> Iterator[Held]:
    """Hold the lease of a folder within the block: renew it meanwhile, end it afterwards.

    `about` is stored with the lease, for a process that takes it over. If the last holder seems dead, waits until that
    is certain. Raises LeaseHeldError when it is alive.
    """
    details = {"who": process_name(), **(about or {})}
    held = _acquire(folder, details, dead_seconds, say)
    term_url = objects.join(_lease_folder(folder), f"{held.fence.term:08d}")
    interval = min(_RENEW_SECONDS, dead_seconds / 4)
    try:
        with heartbeat.beating(f"{term_url}.renewed", lambda count: str(count).encode(), interval):
            yield held
    finally:
        with suppress(IgptError, OSError):  # if it fails, the next process waits until this one counts as dead
            objects.write_bytes(f"{term_url}.ended", b"", patient=False)


def _acquire(folder: str, details: Mapping[str, str], dead_seconds: float, say: Callable[[str], None]) -> Held:
    """Take the next term, once the holder of the newest has finished or is certainly dead."""
    first = now = _observe(folder)
    began = observed = time.monotonic()
    while True:
        step = next_step(first, now, observed - began, dead_seconds)
        if step is Step.REFUSE:
            raise LeaseHeldError(
                f"{folder}: {_describe(_details(folder, now.term))} is working on it; wait until it ends, or cancel it"
            )
        if step is Step.TAKE:
            previous = None if now.ended or not now.term else _details(folder, now.term)
            if (fence := _create(folder, now.term + 1, details)) is not None:
                if previous is not None:
                    say(f"{_describe(previous)} died while working on {folder}; taking over its work")
                return Held(fence=fence, taken_over_from=previous)
        elif now is first:
            say(f"checking whether {_describe(_details(folder, now.term))}, which holds {folder}, is alive")
        time.sleep(min(_OBSERVE_SECONDS, dead_seconds / 10))
        previously = observed
        now, observed = _observe(folder), time.monotonic()
        if observed - previously > dead_seconds / 2:  # an outage or a suspended machine: the holder could not renew
            first, began = now, observed


def _observe(folder: str) -> Observation:
    clock = objects.join(_lease_folder(folder), f"look-{uuid.uuid4().hex}")
    objects.write_bytes(clock, b"")
    try:
        return observation(list(objects.list_files(_lease_folder(folder))), clock)
    finally:
        objects.delete(clock)


def _create(folder: str, term: int, details: Mapping[str, str]) -> Fence | None:
    """Create a term and delete those before the previous one; None when another process has it, or a newer term."""
    url = objects.join(_lease_folder(folder), f"{term:08d}.json")
    fence = Fence(folder=folder, term=term, holder=uuid.uuid4().hex)
    try:
        create_bytes(url, json.dumps({**details, "id": fence.holder}, sort_keys=True).encode())
    except AlreadyExistsError:
        return None
    files = {file.url: objects.name_of(file.url) for file in objects.list_files(_lease_folder(folder))}
    if newest_term(files.values()) > term:  # since the observation newer terms were created, and perhaps deleted
        objects.delete(url)
        return None
    with suppress(IgptError, OSError):  # old terms only take up space
        for url, name in files.items():
            if name[:8].isdigit() and int(name[:8]) < term - 1 and ".claims/" not in url:
                objects.delete(url, patient=False)
    return fence


def _details(folder: str, term: int) -> Mapping[str, str]:
    try:
        return dict(json.loads(objects.read_bytes(objects.join(_lease_folder(folder), f"{term:08d}.json"))))
    except (FileNotFoundError, ValueError):  # deleted meanwhile, for a newer term
        return {}


def _describe(details: Mapping[str, str]) -> str:
    who = details.get("who", "another process")
    return f"{who} (flow run {details['flow_run']})" if details.get("flow_run") else who


def _lease_folder(folder: str) -> str:
    return objects.join(folder, "lease")
