"""Checkpoints of finished runs that nobody needs any more, and files with the stacks of workers that hung.

The newest checkpoint of a finished run is its model, so it stays until that is a registered version with files of its
own. Unfinished runs, runs that were given up (a person may take them up again) and runs whose model is about to be
registered keep all checkpoints.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from igpt_model.runs import attempts, record
from igpt_model.runs.checkpoint import INDEX_FILE
from igpt_model.runs.result import read_result
from pipeline.errors import IgptError
from pipeline.store import lease, objects
from pipeline.store.lease import LeaseHeldError
from pipeline.store.objects import StoredFile

_CHECKPOINTS, _STACKS, _RESULT = "checkpoints", "stacks", "result.json"


@dataclass(frozen=True, kw_only=True)
class OldFiles:
    """Files of a run that may be removed."""

    run: str
    what: str
    """checkpoints or stacks."""
    count: int
    """Number of checkpoints, or of files with stacks."""
    bytes: int
    urls: tuple[str, ...]
    """The files that say that a checkpoint is complete come first."""


def find(
    runs: str, *, checkpoint_seconds: float | None, stack_seconds: float | None, is_version: Callable[[str], bool]
) -> Iterator[OldFiles]:
    """The old files of each run in a runs folder: checkpoints by the age of the run's result, stacks by their own.

    `is_version` tells whether a registered version exists. None for an age: those files stay. A run that this version
    cannot read is left as it is.
    """
    for run, files in record.by_run(list(objects.list_files(runs))).items():
        own = {file.url[len(run) + 1 :]: file for file in files}
        if stack_seconds is not None:
            stacks = [file for path, file in own.items() if path.startswith(f"{_STACKS}/")]
            old = [file for file in stacks if time.time() - file.modified > stack_seconds]
            if old:
                yield _old(run, _STACKS, len(old), old)
        if checkpoint_seconds is not None:
            yield from _checkpoints(run, own, checkpoint_seconds, is_version)


def _checkpoints(
    run: str, own: dict[str, StoredFile], min_seconds: float, is_version: Callable[[str], bool]
) -> Iterator[OldFiles]:
    of_steps: dict[str, list[StoredFile]] = {}
    for path, file in own.items():
        folder, _, rest = path.partition("/")
        step, _, name = rest.partition("/")
        if folder == _CHECKPOINTS and step.isdigit() and name:
            of_steps.setdefault(step, []).append(file)
    if not of_steps or _RESULT not in own or time.time() - own[_RESULT].modified <= min_seconds:
        return
    if (registered := _registration_of_finished(run)) is None:
        return
    complete = [step for step in of_steps if f"{_CHECKPOINTS}/{step}/{INDEX_FILE}" in own]
    kept = "" if registered and is_version(registered) else max(complete, default=None)
    old = [step for step in sorted(of_steps) if step != kept]
    if old and kept is not None:  # without a complete one and a version, somebody should look first
        yield _old(run, _CHECKPOINTS, len(old), [file for step in old for file in of_steps[step]])


def _registration_of_finished(run: str) -> str | None:
    """The version that a finished run was registered as, empty if it need not be; None: it is not finished with."""
    try:
        result, steps = read_result(run), record.read(run).config.optimizer.steps
        registered = attempts.registration(run)
    except IgptError:  # damaged, or of another version
        return None
    if result is None or result.steps < steps or registered == "":
        return None
    return registered or ""


def _old(run: str, what: str, count: int, files: Sequence[StoredFile]) -> OldFiles:
    first = sorted(files, key=lambda file: objects.name_of(file.url) != INDEX_FILE)
    return OldFiles(
        run=run, what=what, count=count, bytes=sum(file.size for file in files), urls=tuple(file.url for file in first)
    )


def remove(old: OldFiles) -> bool:
    """Remove the files, holding the run's lease; False if another process works on the run."""
    try:
        with lease.hold(old.run) as held:
            if old.what == _CHECKPOINTS and _registration_of_finished(old.run) is None:  # extended meanwhile
                return False
            for url in old.urls:
                held.fence.check()
                objects.delete(url)
    except LeaseHeldError:
        return False
    return True
