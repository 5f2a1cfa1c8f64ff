"""Running builds and garbage collections of a dataset, so that no collection removes files that a build will name.

Probes and the removal of old features are the same for the folder of a feature cache.

Each process first writes a record of its own, then looks for others: of two that start at once, at least one sees the
other. A record is renewed while its process lives; one that is not renewed belongs to a dead process.
"""

import json
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from pipeline.errors import IgptError
from pipeline.store import heartbeat, objects
from pipeline.store.lease import process_name

FOLDER = "active"
"""Name of the folder of the records."""
_RENEW_SECONDS = 20.0
_DEAD_SECONDS = 120.0
_WAIT_SECONDS = 600.0
_NAMES = {"build": "a build", "probe": "a probe", "gc": "a removal of files"}


@dataclass(frozen=True, kw_only=True)
class Activity:
    """The record of a process that works on a dataset."""

    kind: str
    """build, probe or gc."""
    who: str
    """Host and process id."""
    url: str


@contextmanager
def building(dataset: str) -> Iterator[None]:
    """Record the block as a build; first waits for a running collection to end."""
    with _using(dataset, "build"):
        yield


@contextmanager
def probing(features: str) -> Iterator[None]:
    """Record the block as a probe that uses a feature cache; first waits for a running removal to end."""
    with _using(features, "probe"):
        yield


@contextmanager
def _using(folder: str, kind: str) -> Iterator[None]:
    with _recorded(folder, kind) as own:
        deadline = time.monotonic() + _WAIT_SECONDS
        while others := [activity for activity in others_active(folder, own) if activity.kind == "gc"]:
            if time.monotonic() > deadline:
                raise IgptError(f"{folder}: {_NAMES['gc']} by {others[0].who} does not end; try again later")
            time.sleep(1)
        yield


@contextmanager
def collecting(dataset: str) -> Iterator[str]:
    """Record the block as a collection; yields the record's URL. Raises IgptError while another process is active."""
    with _recorded(dataset, "gc") as own:
        others = others_active(dataset, own)
        if others:
            kind = _NAMES.get(others[0].kind, others[0].kind)
            raise IgptError(f"{dataset}: {kind} is running ({others[0].who}); nothing was removed, try again later")
        yield own


def others_active(dataset: str, own: str) -> list[Activity]:
    """The records of other living processes; `own` is the URL of the caller's, whose time is the store's clock."""
    modified_at = {file.url: file.modified for file in objects.list_files(objects.join(dataset, FOLDER))}
    now = modified_at.get(own, max(modified_at.values(), default=0.0))
    activities = []
    for url, modified in modified_at.items():
        if url == own or modified < now - _DEAD_SECONDS:
            continue
        with suppress(FileNotFoundError, ValueError, KeyError):  # deleted, or just being written
            fields = json.loads(objects.read_bytes(url))
            activities.append(Activity(kind=fields["kind"], who=fields["who"], url=url))
    return activities


@contextmanager
def _recorded(dataset: str, kind: str) -> Iterator[str]:
    url = objects.join(dataset, FOLDER, f"{kind}-{uuid.uuid4().hex}.json")
    content = json.dumps({"kind": kind, "who": process_name()}).encode()
    objects.write_bytes(url, content)
    try:
        with heartbeat.beating(url, lambda count: content, _RENEW_SECONDS):
            yield url
    finally:
        with suppress(IgptError, OSError):  # if it fails, the record counts as dead before long
            objects.delete(url, patient=False)
