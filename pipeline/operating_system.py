"""Differences between Linux and macOS: the memory limit of a process, the limit on open files.

Imports nothing that Windows lacks, so that programs can end there with one line.
"""

import os
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

# The largest RLIMIT_NOFILE that macOS accepts, although its hard limit reads "unlimited" (OPEN_MAX, setrlimit(2)).
_OPEN_FILES = 10_240
_CHECK_SECONDS = 0.02
OUT_OF_MEMORY_STATUS = 86
"""Exit status of a process that exceeded its memory limit on a system that does not enforce one."""

ON_WINDOWS = (
    "Windows is not supported; use WSL: run `wsl --install` in PowerShell, then the same commands in its Ubuntu shell"
)


def end_on_windows(platform: str = sys.platform) -> None:
    """On Windows, end the program with status 1 and one line, before an import fails."""
    if platform == "win32":
        sys.exit(f"igpt: {ON_WINDOWS}")


def own_cache() -> Path | None:
    """This user's folder for caches in the temporary folder, which nobody else can enter or write.

    Its name can be guessed, so that another user can make it first: then None.
    """
    folder = Path(tempfile.gettempdir()) / f"igpt-cache-{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    about = folder.lstat()
    if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid() or about.st_mode & 0o022:
        return None
    if about.st_mode & 0o077:  # made by an earlier version
        folder.chmod(0o700)
    return folder


def bound_memory(spare_bytes: int, platform: str = sys.platform) -> None:
    """Limit the memory that this process may use in addition to what it uses now.

    On Linux an allocation beyond the limit raises MemoryError. macOS does not enforce RLIMIT_AS, and does not accept a
    value below the hundreds of gigabytes that a process has reserved: there a thread checks the resident memory every
    20 ms, and ends the process with OUT_OF_MEMORY_STATUS when it exceeds the limit.
    """
    import psutil  # noqa: PLC0415 (not installed on every training machine)

    process = psutil.Process()
    if platform == "darwin":
        _watch(lambda: process.memory_info().rss, process.memory_info().rss + spare_bytes)
        return
    import resource  # noqa: PLC0415 (not on Windows)

    limit = process.memory_info().vms + spare_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _watch(resident_bytes: Callable[[], int], limit: int) -> None:
    def watch() -> None:
        while resident_bytes() <= limit:
            time.sleep(_CHECK_SECONDS)
        os._exit(OUT_OF_MEMORY_STATUS)

    threading.Thread(target=watch, daemon=True, name="memory limit").start()


def allow_open_files() -> None:
    """Raise the soft limit on open files to 10,240, or to the hard limit.

    A shell on macOS starts with 256, which Ray and a dataset of many shards exceed.
    """
    import resource  # noqa: PLC0415 (not on Windows)

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(_OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
