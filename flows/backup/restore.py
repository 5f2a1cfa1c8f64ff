"""Restore a backup into an empty place: data first, then what says that data is complete, then the databases.

{root}/restoring.json is written into each bucket or folder first and removed last. While it is there, the same restore
may be run again after an interruption, and no backup is made.
"""

import json
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from flows.backup import archive, databases, selection
from flows.backup.archive import Backup, SavedFile
from pipeline.errors import IgptError
from pipeline.progress import Progress, silent
from pipeline.store import bulk, objects

_AT_ONCE = 8


@dataclass(frozen=True, kw_only=True)
class Restored:
    """A restore that has ended."""

    backup: Backup
    seconds: float


def restore(backups: str, name: str | None = None, progress: Progress = silent) -> Restored:
    """Restore a backup, the newest by default, to where it was.

    Raises IgptError, before anything is written, when the buckets or databases are not empty or cannot be reached, or
    when there is no such backup.
    """
    began = time.monotonic()
    backups = objects.absolute(backups)
    objects.check_reachable(backups)
    backup = archive.read(backups, name)
    _check_has_files(backups, backup)
    begun = [_check_empty(root, backup) for root in backup.roots]
    for database in backup.databases:
        if any(begun):
            databases.has_tables(database)  # each is restored whole or not at all; this asks whether it answers
        else:
            databases.check_empty(database)
    for root in backup.roots:
        objects.write_bytes(objects.join(root, selection.RESTORING), json.dumps({"backup": backup.name}).encode())
    with tempfile.TemporaryDirectory(prefix="igpt-restore-") as temporary:
        place, done = Path(temporary), 0
        for step in range(3):
            chosen = [file for file in backup.files if selection.restore_order(file.url) == step]
            done = _put_back(backups, chosen, place, progress, done, len(backup.files))
        for number, (database, checksum) in enumerate(backup.databases.items(), 1):
            progress("databases", number, len(backup.databases), database)
            if not databases.has_tables(database):
                with archive.fetched(backups, checksum, place) as path:
                    databases.restore(database, path)
    for root in backup.roots:
        objects.delete(objects.join(root, selection.RESTORING))
    return Restored(backup=backup, seconds=time.monotonic() - began)


def _check_has_files(backups: str, backup: Backup) -> None:
    stored = archive.stored(backups)
    wanted = {file.sha256: file.bytes for file in backup.files}
    lost = [checksum for checksum, size in wanted.items() if stored.get(checksum) != size]
    lost += [checksum for checksum in backup.databases.values() if checksum not in stored]
    if lost:
        raise IgptError(
            f"{backups}: backup {backup.name} is damaged, {len(lost)} of its files are missing or cut off, such as "
            f"{archive.file_url(backups, lost[0])}; restore another one, `igpt backup ls {backups}` lists them"
        )


def _check_empty(root: str, backup: Backup) -> bool:
    """Whether this restore has begun before. Raises IgptError when a bucket or folder has anything else in it."""
    objects.check_reachable(root)
    marker = objects.join(root, selection.RESTORING)
    try:
        begun = str(json.loads(objects.read_bytes(marker))["backup"])
    except FileNotFoundError:
        begun = ""
    if begun == backup.name:
        return True
    if begun:
        raise IgptError(
            f"{root}: a restore of backup {begun} into it has not ended: run it again with --name {begun}, or empty it"
        )
    present = next(iter(bulk.list_files(root)), None)
    if present is not None:
        raise IgptError(f"{root} is not empty, it has {present.url}: restore into empty buckets; nothing was written")
    return False


def _put_back(backups: str, files: Iterable[SavedFile], place: Path, progress: Progress, done: int, total: int) -> int:
    """Write files to where they were; returns how many of all are done."""

    def put(file: SavedFile) -> None:
        # Files of equal content may be fetched at once.
        with (
            tempfile.TemporaryDirectory(dir=place) as own,
            archive.fetched(backups, file.sha256, Path(own)) as path,
        ):
            objects.upload(path, file.url)

    progress("restore", done, total, "files")
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for _ in pool.map(put, files):
            done += 1
            progress("restore", done, total, "files")
    return done
