"""Local files with the guarantees of an object store: complete listings, atomic writes.

fsspec silently skips folders that it may not read.
"""

import errno
import os
import re
import stat
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

_TAG = re.compile(r"^(\d+-\d+)-\d+$")
# Removed files, dangling links and links to themselves are left out of listings.
_NO_FILE = (errno.ENOENT, errno.ELOOP, errno.ENOTDIR)


class LocalFile(NamedTuple):
    """A file in a listing."""

    path: str
    size: int
    """Bytes."""
    tag: str
    """Changes when the file is rewritten."""
    modified: float
    """When it was last written or linked, in seconds since 1970."""


OnDangling = Callable[[str], object]


def ignore(path: str) -> None:
    """Do nothing about a link that leads nowhere."""


def walk(
    root: str, *, follow_links: bool, without: str | None = None, on_dangling: OnDangling = ignore
) -> Iterator[LocalFile]:
    """List every file below a folder, or the file itself, in no particular order; `without` names a folder to skip.

    Files that are created or removed meanwhile may be missing. Links to files count as files; links to folders are
    entered once with `follow_links`, else skipped. `on_dangling` is called with the path of a link that leads nowhere.
    Raises OSError when a folder cannot be read.
    """
    try:
        status = Path(root).stat()
    except OSError as error:
        if error.errno in _NO_FILE:
            return
        raise
    if stat.S_ISREG(status.st_mode):
        yield LocalFile(root, status.st_size, tag(status), status.st_mtime)
    waiting = [root] if stat.S_ISDIR(status.st_mode) else []
    entered: set[tuple[int, int]] = set()  # a link may point to a folder above it
    if without is not None and Path(without).is_dir():
        skipped = Path(without).stat()
        entered.add((skipped.st_dev, skipped.st_ino))
    while waiting:
        folder = waiting.pop()
        try:
            status, entries = Path(folder).stat(), os.scandir(folder)
        except FileNotFoundError:
            continue
        with entries:
            if (status.st_dev, status.st_ino) in entered:
                continue
            entered.add((status.st_dev, status.st_ino))
            for entry in entries:
                try:
                    if entry.is_dir(follow_symlinks=follow_links):
                        waiting.append(entry.path)
                    elif entry.is_file():
                        target, link = entry.stat(), entry.stat(follow_symlinks=False)
                        yield LocalFile(entry.path, target.st_size, tag(target), max(target.st_mtime, link.st_mtime))
                    elif entry.is_symlink() and not Path(entry.path).exists():
                        on_dangling(entry.path)
                except OSError as error:
                    if error.errno not in _NO_FILE:
                        raise
                    if entry.is_symlink():
                        on_dangling(entry.path)


def tag(status: os.stat_result) -> str:
    """A tag of a file, from its size and times: changes when the file is rewritten.

    It also changes when the file is replaced by another with the same size and time of writing, which keeps the time of
    its inode, and when only its mode or a link to it changes.
    """
    return f"{status.st_size}-{status.st_mtime_ns}-{status.st_ctime_ns}"


def earlier_tag(text: str) -> str:
    """The tag that earlier versions gave the same file: without the time of its inode. Other etags are unchanged."""
    return _TAG.sub(r"\1", text)


def write(path: str, data: bytes, *, exclusive: bool = False) -> None:
    """Write a file atomically; creates its folder. With `exclusive`, raises FileExistsError when the file exists."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}.partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if exclusive:
            os.link(partial, target)  # unlike a rename, a link refuses to replace
        else:
            partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
