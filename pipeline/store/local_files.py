"""Local files with the guarantees of an object store: complete listings, atomic writes.

fsspec silently skips folders that it may not read.
"""

import errno
import heapq
import os
import re
import stat
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from pipeline.store.path_text import from_text, to_text

_TAG = re.compile(r"^(\d+-\d+)-\d+$")
# Of removed files, dangling links and links to themselves.
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


OnUnusable = Callable[[str, bool], object]
"""Called with a path that is no file, and whether it is a link that leads nowhere: else a pipe, socket or device."""


def ignore(path: str, dangling: bool) -> None:
    """Do nothing about it."""


def walk(
    root: str, *, follow_links: bool, without: str | None = None, on_unusable: OnUnusable = ignore
) -> Iterator[LocalFile]:
    """List every file below a folder, or the file itself, in no particular order; paths are text (see path_text.py).

    Files that are created or removed meanwhile may be missing. Links to files count as files; `on_unusable` is called
    for links that lead nowhere, pipes, sockets and devices. Links to folders are entered with `follow_links`, else
    skipped; `without` names a folder to skip. A folder is entered once: under its own path if that is below the root,
    else by the first of its links in alphabetical order. Raises OSError when a folder cannot be read.
    """
    try:
        status = Path(from_text(root)).stat()
    except OSError as error:
        if error.errno in _NO_FILE:
            return
        raise
    if stat.S_ISREG(status.st_mode):
        yield LocalFile(root, status.st_size, tag(status), status.st_mtime)
    entered: set[tuple[int, int]] = set()  # a link may point to a folder above it
    if without is not None and Path(from_text(without)).is_dir():
        skipped = Path(from_text(without)).stat()
        entered.add((skipped.st_dev, skipped.st_ino))
    waiting = [from_text(root)] if stat.S_ISDIR(status.st_mode) else []
    links: list[str] = []  # to folders, which are entered last: a heap
    while waiting or links:
        folder = waiting.pop() if waiting else heapq.heappop(links)
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
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    elif entry.is_dir():
                        if follow_links:
                            heapq.heappush(links, entry.path)
                    elif entry.is_file():
                        target, link = entry.stat(), entry.stat(follow_symlinks=False)
                        newest = max(target.st_mtime, link.st_mtime)
                        yield LocalFile(to_text(entry.path), target.st_size, tag(target), newest)
                    else:
                        on_unusable(to_text(entry.path), not Path(entry.path).exists())
                except OSError as error:
                    if error.errno not in _NO_FILE:
                        raise
                    if entry.is_symlink():
                        on_unusable(to_text(entry.path), True)


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
    partial = target.with_name(f".{os.getpid()}.{uuid.uuid4().hex[:8]}.partial")  # a name may be 255 bytes long
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
