"""Files of this machine as object stores have them: a folder listed wholly or not at all, a file written whole.

fsspec leaves a folder out that it may not read, and says nothing.
"""

import errno
import os
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

# What is gone, or a link that leads nowhere or to itself, is no file.
_NOTHING_THERE = (errno.ENOENT, errno.ELOOP, errno.ENOTDIR)


class LocalFile(NamedTuple):
    """A file that was found."""

    path: str
    size: int
    """Bytes."""
    tag: str
    """Changes when it is written anew."""
    modified: float
    """When it was last written or linked, in seconds since 1970."""


def walk(root: str, *, follow_links: bool) -> Iterator[LocalFile]:
    """Find every file below a folder, or the one file it is; in no certain order.

    What is created or removed meanwhile may be missing. Links to files count as files; links to folders are entered
    once with `follow_links`, else left out. Raises OSError where a folder cannot be read.
    """
    try:
        found = Path(root).stat()
    except OSError as error:
        if error.errno in _NOTHING_THERE:
            return
        raise
    if stat.S_ISREG(found.st_mode):
        yield LocalFile(root, found.st_size, tag(found), found.st_mtime)
    waiting = [root] if stat.S_ISDIR(found.st_mode) else []
    entered: set[tuple[int, int]] = set()  # a link may lead back to a folder above it
    while waiting:
        folder = waiting.pop()
        try:
            found, entries = Path(folder).stat(), os.scandir(folder)
        except FileNotFoundError:
            continue
        with entries:
            if (found.st_dev, found.st_ino) in entered:
                continue
            entered.add((found.st_dev, found.st_ino))
            for entry in entries:
                try:
                    if entry.is_dir(follow_symlinks=follow_links):
                        waiting.append(entry.path)
                    elif entry.is_file():
                        found, own = entry.stat(), entry.stat(follow_symlinks=False)
                        yield LocalFile(entry.path, found.st_size, tag(found), max(found.st_mtime, own.st_mtime))
                except OSError as error:
                    if error.errno not in _NOTHING_THERE:
                        raise


def tag(found: os.stat_result) -> str:
    """What changes when a file is written anew."""
    return f"{found.st_size}-{found.st_mtime_ns}"


def write(path: str, data: bytes, *, exclusive: bool = False) -> None:
    """Write a file whole or not at all; its folder is made. Raises FileExistsError where an exclusive one stands."""
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
