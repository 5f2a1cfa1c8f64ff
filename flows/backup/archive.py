"""A folder of backups: every file once, by its SHA-256, and for each backup a list of its files.

{backups}/files/{aa}/{sha256}                a file
{backups}/2026-11-26T013000Z.json            a backup: what it has. Written last, so without it there is no backup

Most files never change, so a backup mostly names files that an earlier one has copied.
"""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.errors import IgptError
from pipeline.hashing import sha256_of_file
from pipeline.store import bulk, objects

FORMAT = 1
_WORKPLACE = ".igpt-backup-"
_TIME = "%Y-%m-%dT%H%M%SZ"
_NAME = re.compile(r"\d{4}-\d{2}-\d{2}T\d{6}Z")


@dataclass(frozen=True, kw_only=True)
class SavedFile:
    """One object of a backup."""

    url: str
    """Where it was, and where a restore puts it."""
    bytes: int
    sha256: str
    etag: str
    """The store's, by which the next backup knows that it has this file."""


@dataclass(frozen=True, kw_only=True)
class Backup:
    """The list of a backup."""

    name: str
    """The time at which it began, as in 2026-11-26T013000Z."""
    program: str
    """Program and version, as in a user agent."""
    seconds: float
    roots: tuple[str, ...]
    """The buckets and folders that were saved, which a restore fills."""
    databases: Mapping[str, str]
    """SHA-256 of the dump of each database."""
    files: tuple[SavedFile, ...]
    missing: tuple[str, ...]
    """URLs of objects that something saved refers to, and that were not there."""

    @property
    def bytes(self) -> int:
        """The total size of its objects, without dumps."""
        return sum(file.bytes for file in self.files)


def new_name(now: datetime) -> str:
    """The name of a backup that begins now."""
    return now.astimezone(UTC).strftime(_TIME)


def began(name: str) -> datetime:
    """The time at which the backup of a name began."""
    return datetime.strptime(name, _TIME).replace(tzinfo=UTC)


def names(backups: str) -> list[str]:
    """The names of the whole backups in a folder, the oldest first."""
    listed = (objects.name_of(file.url).removesuffix(".json") for file in _lists(backups))
    return sorted(name for name in listed if _NAME.fullmatch(name))


def _lists(backups: str) -> Iterator[objects.StoredFile]:
    files = objects.join(backups, "files")
    return (file for file in bulk.list_files(backups, without=files) if file.url.endswith(".json"))


def read(backups: str, name: str | None = None) -> Backup:
    """Read the list of a backup, the newest by default. Raises IgptError when there is none, or a damaged one."""
    if name is None:
        name = max(names(backups), default=None)
    if name is None:
        raise IgptError(f"{backups}: no whole backup there; `igpt backup save {backups}` makes one")
    url = _list_url(backups, name)
    try:
        fields = json.loads(objects.read_bytes(url))
        if fields.pop("format") != FORMAT:
            raise IgptError(f"{url}: a backup of another version of igpt-pipeline; restore it with that version")
        return _from_fields(fields)
    except FileNotFoundError:
        raise IgptError(f"{backups}: no whole backup {name}; `igpt backup ls {backups}` lists them") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise IgptError(f"{url}: a damaged list ({error}); restore another backup") from None


def _from_fields(fields: Mapping[str, Any]) -> Backup:
    lists = {name: tuple(fields[name]) for name in ("roots", "missing")}
    return Backup(**{**fields, **lists, "files": tuple(SavedFile(**file) for file in fields["files"])})


def complete(backups: str, backup: Backup) -> None:
    """Write the list of a backup, which makes it whole. Its files are there."""
    data = json.dumps({"format": FORMAT, **asdict(backup)}, sort_keys=True).encode()
    objects.write_bytes(_list_url(backups, backup.name), data)


def _list_url(backups: str, name: str) -> str:
    return objects.join(backups, f"{name}.json")


def file_url(backups: str, sha256: str) -> str:
    """Where a file is, by its SHA-256."""
    return objects.join(backups, "files", sha256[:2], sha256)


def stored(backups: str) -> dict[str, int]:
    """The size of each file in the folder, by its SHA-256."""
    return {objects.name_of(file.url): file.size for file in bulk.list_files(objects.join(backups, "files"))}


@contextmanager
def workplace(backups: str) -> Iterator[Path]:
    """A temporary folder for files on their way: on the disk of the backups, if they are on one, else of this machine.

    The caller holds the lease of the backups, so the folder of an earlier process is one that died.
    """
    folder = objects.local_path(backups) if objects.protocol(backups) == "file" else None
    if folder is not None:
        for left in folder.glob(f"{_WORKPLACE}*"):
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=_WORKPLACE, dir=folder) as temporary:
        yield Path(temporary)


def make_folder(backups: str) -> None:
    """Make a local folder of backups, for this user only: dumps hold hashes of passwords."""
    if objects.protocol(backups) == "file":
        folder = objects.local_path(backups)
        if not folder.exists():
            folder.mkdir(mode=0o700, parents=True)


def put(backups: str, path: Path) -> str:
    """Move a file of the workplace into the folder; returns its SHA-256. Readers see all of it or nothing."""
    checksum = sha256_of_file(path)
    url = file_url(backups, checksum)
    if objects.protocol(url) != "file":
        objects.upload(path, url)
        path.unlink()
        return checksum
    target = objects.local_path(url)
    target.parent.mkdir(exist_ok=True, parents=True)
    with path.open("rb") as file:
        os.fsync(file.fileno())
    path.replace(target)
    return checksum


@contextmanager
def fetched(backups: str, checksum: str, place: Path) -> Iterator[Path]:
    """A file of the folder as a local one, verified. Raises IgptError when it is missing or damaged."""
    url = file_url(backups, checksum)
    local = objects.protocol(url) == "file"
    path = objects.local_path(url) if local else place / checksum
    try:
        if not local:
            objects.download(url, path)
        if sha256_of_file(path) != checksum:
            raise IgptError(f"{url} is damaged (its checksum is another); restore another backup")
        yield path
    except FileNotFoundError:
        raise IgptError(f"{url} is missing; restore another backup") from None
    finally:
        if not local:
            path.unlink(missing_ok=True)


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """What was removed."""

    backups: tuple[str, ...]
    files: int
    bytes: int


def prune(backups: str, keep: int) -> Pruned:
    """Remove all but the newest backups, then the files that none names. The caller holds the lease of the folder."""
    every = names(backups)
    old, kept = every[:-keep], every[-keep:]
    for name in old:
        objects.delete(_list_url(backups, name))
    named: set[str] = set()
    for name in kept:
        backup = read(backups, name)
        named.update(file.sha256 for file in backup.files)
        named.update(backup.databases.values())
    sizes = stored(backups)
    unnamed = [checksum for checksum in sizes if checksum not in named]
    for checksum in unnamed:
        objects.delete(file_url(backups, checksum))
    return Pruned(backups=tuple(old), files=len(unnamed), bytes=sum(sizes[checksum] for checksum in unnamed))
