"""What is not the same on Linux and macOS: a bound on memory, and the number of open files.

Imports nothing that Windows lacks, so that a program can say in one line that it does not run there.
"""

import os
import sys
import threading
import time
from collections.abc import Callable

# What macOS takes as RLIMIT_NOFILE although its hard limit reads "unlimited" (OPEN_MAX, setrlimit(2)).
_OPEN_FILES = 10_240
_LOOK_SECONDS = 0.02
OUT_OF_MEMORY_STATUS = 86
"""How a process ends that grew beyond its bound where the system does not refuse it the memory."""

ON_WINDOWS = (
    "Windows is not supported; use WSL: run `wsl --install` in PowerShell, then the same commands in its Ubuntu shell"
)


def end_on_windows(platform: str = sys.platform) -> None:
    """End the program with 1 and one line on Windows, before an import fails there."""
    if platform == "win32":
        sys.exit(f"igpt: {ON_WINDOWS}")


def bound_memory(spare_bytes: int, platform: str = sys.platform) -> None:
    """Bound the memory that this process may take beside what it has now.

    On Linux an allocation beyond it raises MemoryError. macOS does not enforce RLIMIT_AS, and refuses to set it below
    the hundreds of gigabytes that a process has reserved there: instead a thread looks at the resident memory every
    20 ms, and ends the process with OUT_OF_MEMORY_STATUS when it is too much.
    """
    import psutil  # noqa: PLC0415 (not on every machine that trains)

    process = psutil.Process()
    if platform == "darwin":
        _watch(lambda: process.memory_info().rss, process.memory_info().rss + spare_bytes)
        return
    import resource  # noqa: PLC0415 (not on Windows)

    limit = process.memory_info().vms + spare_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _watch(resident_bytes: Callable[[], int], limit: int) -> None:
    def look() -> None:
        while resident_bytes() <= limit:
            time.sleep(_LOOK_SECONDS)
        os._exit(OUT_OF_MEMORY_STATUS)

    threading.Thread(target=look, daemon=True, name="memory bound").start()


def allow_open_files() -> None:
    """Raise the soft limit on open files to 10,240, or as far as the hard limit lets it.

    A shell on macOS starts with 256, which Ray and an open dataset of many shards exceed.
    """
    import resource  # noqa: PLC0415 (not on Windows)

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(_OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
