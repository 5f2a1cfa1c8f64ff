"""Save a backup: first the databases, then the store, then the list that makes it whole.

In that order, because what a database names is in the store before: the files of a version, the folder of a run. What
the store has and the databases lack, since it began in between, is written to them again: a resumed training opens its
MLflow run anew and sends all its metrics.
"""

import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from flows.backup import archive, databases, selection
from flows.backup.archive import Backup, Pruned, SavedFile
from flows.backup.selection import Selected
from flows.config.backup import BackupConfig
from pipeline.progress import Progress, silent
from pipeline.store import lease, objects
from pipeline.store.objects import StoredFile

_AT_ONCE = 8
_TRIES = 3  # for the checkpoint of a run that is being trained, which may be removed for a newer one


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A backup that was made."""

    backup: Backup
    copied: int
    """Number of files that no earlier backup had."""
    copied_bytes: int
    pruned: Pruned


def save(config: BackupConfig, backups: str, program: str, progress: Progress = silent) -> Saved:
    """Make a backup in a folder of backups, and remove the oldest ones there.

    Raises IgptError, and leaves no list behind, when a database or the store cannot be read, when another backup is
    being made there, or when a restore has not ended.
    """
    began = time.monotonic()
    backups, roots = objects.absolute(backups), tuple(objects.absolute(root).rstrip("/") for root in config.roots)
    for url in (backups, *roots):
        objects.check_reachable(url)
    selection.check_not_being_restored(roots)
    archive.make_folder(backups)
    with lease.hold(backups) as held, archive.workplace(backups) as place:
        while (name := archive.new_name(datetime.now(UTC))) in archive.names(backups):
            time.sleep(1)
        dumps: dict[str, str] = {}
        for number, database in enumerate(config.databases, 1):
            progress("dump", number, len(config.databases), f"databases, {database}")
            path = place / f"{database}.dump"
            databases.dump(database, path)
            dumps[database] = archive.put(backups, path)
        copier = _Copier(backups, place, progress)
        for root in config.datasets:
            copier.copy_all(selection.datasets(objects.absolute(root).rstrip("/")))
        for root in config.runs:
            for run, selected in selection.runs(objects.absolute(root).rstrip("/")):
                copier.copy_all([selected])
                copier.copy_checkpoint(run)
        for root in config.artifacts:
            copier.copy_all(selection.artifacts(objects.absolute(root).rstrip("/")))
        backup = Backup(
            name=name,
            program=program,
            seconds=round(time.monotonic() - began, 1),
            roots=roots,
            databases=dumps,
            files=tuple(copier.files),
            missing=tuple(copier.missing),
        )
        held.fence.check()
        archive.complete(backups, backup)
        pruned = archive.prune(backups, config.keep)
    return Saved(backup=backup, copied=copier.copied, copied_bytes=copier.copied_bytes, pruned=pruned)


class _Copier:
    """Copies selected files into the folder, except those that the newest backup has."""

    def __init__(self, backups: str, place: Path, progress: Progress) -> None:
        self.files: list[SavedFile] = []
        self.missing: list[str] = []
        self.copied = self.copied_bytes = 0
        self._backups, self._place, self._progress = backups, place, progress
        newest = archive.read(backups) if archive.names(backups) else None
        self._stored = archive.stored(backups)
        self._known = {} if newest is None else {(file.url, file.bytes, file.etag): file for file in newest.files}

    def copy_all(self, selections: Iterable[Selected]) -> None:
        """Copy the files of selections."""
        for selected in selections:
            saved, gone = self._copy(selected.files, selected.contents)
            self.files += saved
            self.missing += [*selected.missing, *gone]

    def copy_checkpoint(self, run: str) -> None:
        """Copy the newest checkpoint of a run, or a newer one that replaces it meanwhile."""
        for left in reversed(range(_TRIES)):
            selected = selection.newest_checkpoint(run)
            saved, gone = self._copy(selected.files, {})
            missing = [*selected.missing, *gone]
            if not missing or not left:
                self.files += saved
                self.missing += missing
                return

    def _copy(self, files: Iterable[StoredFile], contents: Mapping[str, bytes]) -> tuple[list[SavedFile], list[str]]:
        """Copy files; returns those that were saved, and the URLs of those that were removed meanwhile."""
        wanted = list(files)
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            tries = pool.map(lambda item: self._copy_file(item[0], item[1], contents), enumerate(wanted))
            saved = list(tries)
        self._progress("copy", len(self.files) + len(wanted), 0, "files")
        gone = [file.url for file, copy in zip(wanted, saved, strict=True) if copy is None]
        return [copy for copy in saved if copy is not None], gone

    def _copy_file(self, number: int, file: StoredFile, contents: Mapping[str, bytes]) -> SavedFile | None:
        known = self._known.get((file.url, file.size, file.etag)) if file.etag else None
        if known is not None and file.url not in contents and self._stored.get(known.sha256) == known.bytes:
            return known
        path = self._place / str(number)
        if file.url in contents:
            path.write_bytes(contents[file.url])
        else:
            try:
                objects.download(file.url, path)
            except FileNotFoundError:
                path.unlink(missing_ok=True)
                return None
        size = path.stat().st_size
        checksum = archive.put(self._backups, path)
        if checksum not in self._stored:
            self._stored[checksum] = size
            self.copied += 1
            self.copied_bytes += size
        return SavedFile(url=file.url, bytes=size, sha256=checksum, etag=file.etag)
