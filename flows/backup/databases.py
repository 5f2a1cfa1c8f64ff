"""PostgreSQL's databases, by its own programs: pg_dump, pg_restore and psql.

They take server and user from PGHOST, PGPORT and PGUSER, which this process inherits, and the password from the file of
PGSERVICEFILE or PGPASSFILE (or from PGPASSWORD).
"""

import subprocess
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import IgptError
from pipeline.printable import printable

_CONNECT_SECONDS = 10
_TABLES = "SELECT count(*) FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
_OWNER = "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = current_database()"


def dump(database: str, path: Path) -> None:
    """Write a database into a file, as of one moment. Raises IgptError with PostgreSQL's message."""
    _run(database, ["pg_dump", "--format=custom", f"--file={path}", _connection(database)])


def check_empty(database: str) -> None:
    """Raise IgptError when a database has a table, does not exist or cannot be reached."""
    tables = int(_ask(database, _TABLES))
    if tables:
        raise IgptError(
            f"database {database} is not empty, it has {tables} tables: restore into an empty one, before MLflow and "
            "Prefect are started"
        )


def has_tables(database: str) -> bool:
    """Whether a database has a table."""
    return int(_ask(database, _TABLES)) > 0


def restore(database: str, path: Path) -> None:
    """Fill an empty database from a file, in one transaction; what is in it belongs to the owner of the database."""
    owner = _ask(database, _OWNER)
    options = ["--exit-on-error", "--single-transaction", "--no-owner", f"--role={owner}"]
    _run(database, ["pg_restore", *options, f"--dbname={_connection(database)}", str(path)])


def _ask(database: str, query: str) -> str:
    command = ["psql", "--no-psqlrc", "--tuples-only", "--no-align", f"--command={query}", _connection(database)]
    return _run(database, command).strip()


def _connection(database: str) -> str:
    return f"dbname={database} connect_timeout={_CONNECT_SECONDS}"


def _run(database: str, command: Sequence[str]) -> str:
    program = command[0]
    # Without a password it would ask for one.
    words = [program, "--no-password", *command[1:]]
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL, check=False
        )
    except FileNotFoundError:
        raise IgptError(
            f"the program {program} is not installed; install PostgreSQL's client, of the server's version or newer"
        ) from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or [f"status {done.returncode}"]
        reason = printable(" ".join(" ".join(lines[:2]).split()))
        raise IgptError(
            f"database {database}: {reason}; check PGHOST, PGUSER, the password of PGSERVICEFILE, and the server"
        )
    return done.stdout
