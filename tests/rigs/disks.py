"""A disk of a few megabytes that can be filled to its last byte, for root on Linux: a file system in memory."""

import errno
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def small_disk(folder: Path, *, mebibytes: int) -> Iterator[Path]:
    """The folder as a disk of its own, empty; what lay there before is there again when the context ends."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "igpt-small-disk", str(folder)], check=True)
    try:
        yield folder
    finally:
        # Lazily: a process that is ending may still have a file open.
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path) -> None:
    """Write until nothing more goes on the disk."""
    with (disk / "filler").open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
