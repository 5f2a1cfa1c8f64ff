"""Who works on a dataset: marks of running builds and collections, so that none removes what another is about to name.

Each writes its mark first and looks for the other's then; of two that begin at once, one at least sees the other. A
mark is renewed while its process lives; one that is not is of a process that died.
"""

import json
import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from pipeline.errors import IgptError
from pipeline.store import heartbeat, objects

_RENEW_SECONDS = 20.0
_DEAD_SECONDS = 120.0
_WAIT_SECONDS = 600.0


@dataclass(frozen=True, kw_only=True)
class Mark:
    """One process at work on a dataset."""

    kind: str
    """build or gc."""
    who: str
    """Host and process id."""
    url: str


@contextmanager
def building(dataset: str) -> Iterator[None]:
    """Mark the block as a build; waits for a collection that is under way."""
    with _marked(dataset, "build") as mine:
        deadline = time.monotonic() + _WAIT_SECONDS
        while others := [mark for mark in at_work(dataset, mine) if mark.kind == "gc"]:
            if time.monotonic() > deadline:
                raise IgptError(f"{dataset}: `igpt dataset gc` of {others[0].who} does not end; try again later")
            time.sleep(1)
        yield


@contextmanager
def collecting(dataset: str) -> Iterator[str]:
    """Mark the block as a collection; yields the mark's URL. Raises IgptError while anything else is at work."""
    with _marked(dataset, "gc") as mine:
        others = at_work(dataset, mine)
        if others:
            kind = "build" if others[0].kind == "build" else "`igpt dataset gc`"
            raise IgptError(f"{dataset}: a {kind} is running ({others[0].who}); nothing was removed, try again later")
        yield mine


def at_work(dataset: str, mine: str) -> list[Mark]:
    """The marks of other living processes; `mine` is the URL of the caller's, whose time tells that of the store."""
    found = {file.url: file.modified for file in objects.list_files(objects.join(dataset, "active"))}
    now = found.get(mine, max(found.values(), default=0.0))
    marks = []
    for url, modified in found.items():
        if url == mine or modified < now - _DEAD_SECONDS:
            continue
        with suppress(FileNotFoundError, ValueError, KeyError):  # gone, or just being written
            fields = json.loads(objects.read_bytes(url))
            marks.append(Mark(kind=fields["kind"], who=fields["who"], url=url))
    return marks


@contextmanager
def _marked(dataset: str, kind: str) -> Iterator[str]:
    url = objects.join(dataset, "active", f"{kind}-{uuid.uuid4().hex}.json")
    content = json.dumps({"kind": kind, "who": f"process {os.getpid()} on {socket.gethostname()}"}).encode()
    objects.write_bytes(url, content)
    try:
        with heartbeat.beating(url, lambda count: content, _RENEW_SECONDS):
            yield url
    finally:
        with suppress(IgptError, OSError):  # then it is one of the dead before long
            objects.delete(url, patient=False)
