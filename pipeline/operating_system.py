"""Differences between Linux and macOS: the memory limit of a process, the limit on open files.

Imports nothing that Windows lacks, so that programs can end there with one line.
"""

import os
import sys
import threading
import time
from collections.abc import Callable

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
