"""What a process worker starts for a flow run: it starts the run's driver apart from the worker, and waits for it.

The worker ends this process when it ends itself, and the driver goes on: in a session and a folder of its own, with the
worker's output as its own. The work pools that `igpt deploy` makes name this module as their command.
"""

import os
import signal
import subprocess
import sys
from contextlib import ExitStack, suppress
from pathlib import Path

from flows.services.password_files import prefect_auth

_DRIVER = "flows.prefect_ops.driver"


def main() -> int:
    """Run the driver; returns its exit code, or 128 and the number of the signal that ended it, as a shell does."""
    # Prefect sends SIGTERM for a cancellation too. The driver sees that by itself, and its end is awaited here, so that
    # Prefect calls the run cancelled when it is over. By a handler, because the driver would ignore an ignored signal.
    signal.signal(signal.SIGTERM, lambda *_: None)
    with ExitStack() as stack:
        output = None  # through the worker's pipe, which ends with it: not on Linux, or it cannot be opened again
        with suppress(OSError):
            output = stack.enter_context(Path(f"/proc/{os.getppid()}/fd/1").open("ab", buffering=0))
        driver = subprocess.Popen(
            [sys.executable, "-P", "-m", _DRIVER],  # without the working directory in the module path
            cwd=Path(sys.executable).anchor,  # the worker's is removed when it ends
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    code = driver.wait()
    return code if code >= 0 else 128 - code


def _environment() -> dict[str, str]:
    """This process's environment without the password that Prefect's worker has copied into it from a file."""
    variables = dict(os.environ)
    profiles = variables.get("PREFECT_PROFILES_PATH")
    if profiles and prefect_auth(Path(profiles), variables.get("PREFECT_PROFILE")):
        variables.pop("PREFECT_API_AUTH_STRING", None)
    return variables


if __name__ == "__main__":
    sys.exit(main())
