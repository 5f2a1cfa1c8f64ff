"""SQLite databases of Prefect and MLflow, created by the first server of a run and copied for the next ones.

Creating both takes seven seconds of processor time. side_by_side.py names the folder of the copies in the environment;
without it, every server creates its own.
"""

import fcntl
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import TypeVar

VARIABLE = "IGPT_TEST_DATABASES"
Started = TypeVar("Started")


def with_databases(kind: str, databases: Iterable[Path], start: Callable[[], Started]) -> Started:
    """Call `start`, whose servers create databases that do not exist, with copies of those that one before has left.

    `kind` tells servers apart whose databases differ from the beginning. While the first call of a kind starts its
    servers, others wait. The servers must answer when `start` returns.
    """
    folder = os.environ.get(VARIABLE)
    new = {Path(folder) / f"{kind}-{path.name}": path for path in databases if not path.exists()} if folder else {}
    if not new:
        return start()
    with (next(iter(new)).parent / f"{kind}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not all(kept.exists() for kept in new):
            started = start()
            for kept, path in new.items():
                _copy(path, kept)
            return started
    for kept, path in new.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(kept, path)
    return start()


def _copy(database: Path, target: Path) -> None:
    """Copy a database that a server uses, with what is in its log only; the target appears when it is whole."""
    unfinished = target.with_suffix(".new")
    with closing(sqlite3.connect(database)) as source, closing(sqlite3.connect(unfinished)) as copy:
        source.backup(copy)
    unfinished.rename(target)
