"""The PostgreSQL server of the rigs: separate databases, a password, and committed data that survives a kill."""

import importlib.util
import os
import signal
import subprocess
from pathlib import Path

import psycopg2
import pytest
import sqlalchemy

from flows.services.ports import HOST, free_port
from tests.rigs import postgres as postgres_rig
from tests.rigs.postgres import PostgresData, PostgresServer
from tests.rigs.s3_server import launch_here


def count(server: PostgresServer, database: str) -> int:
    """The number of tables in the public schema of a database."""
    engine = sqlalchemy.create_engine(server.url(database))
    with engine.connect() as connection:
        query = "SELECT count(*) FROM information_schema.tables WHERE table_schema = 'public'"
        tables = connection.execute(sqlalchemy.text(query)).scalar_one()
    engine.dispose()
    return int(tables)


def test_databases_are_separate_and_need_the_password(postgres: PostgresServer) -> None:
    postgres.create_database("rig_first")
    postgres.create_database("rig_second")
    engine = sqlalchemy.create_engine(postgres.url("rig_first"))
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("CREATE TABLE t (x int)"))
    engine.dispose()
    assert (count(postgres, "rig_first"), count(postgres, "rig_second")) == (1, 0)
    with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
        psycopg2.connect(host=postgres.address, port=postgres.port, user="postgres", password="x", dbname="rig_first")


@pytest.mark.needs("postgres")
def test_committed_data_survives_a_kill_and_nothing_is_left_behind() -> None:
    started: list[subprocess.Popen[bytes]] = []

    def launch(command: list[str], environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
        started.append(launch_here(command, environment, log))
        return started[-1]

    port = free_port()
    with PostgresData() as data:
        folder = data.log.parent
        with data.serve(HOST, port, launch) as server:
            server.create_database("kept")
            os.kill(started[0].pid, signal.SIGKILL)
            started[0].wait()
            assert not server.answers()
        with data.serve(HOST, port, launch) as server:
            assert count(server, "kept") == 0
    assert started[1].returncode == 0
    assert not folder.exists()


def test_without_the_wheel_the_server_of_the_system_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(postgres_rig, "_DEBIAN", tmp_path / "postgresql")
    monkeypatch.setattr(postgres_rig, "installation", postgres_rig.installation.__wrapped__)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert "on Debian install postgresql" in str(postgres_rig.why_not())
    for version in ("9.6", "17", "15"):
        (tmp_path / "postgresql" / version / "bin").mkdir(parents=True)
    assert postgres_rig.installation() == tmp_path / "postgresql" / "17"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "initdb").touch(mode=0o755)
    assert postgres_rig.installation() == tmp_path
    assert postgres_rig.why_not() is None
