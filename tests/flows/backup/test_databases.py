"""Databases are dumped and restored by PostgreSQL's programs, whole, and their errors are one line."""

from pathlib import Path

import pytest
import sqlalchemy

from flows.backup import databases
from pipeline.errors import IgptError
from tests.rigs import postgres as postgres_rig
from tests.rigs.postgres import PostgresServer


def use(server: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the variables by which PostgreSQL's programs find a server."""
    installed = postgres_rig.installation()
    assert installed is not None
    monkeypatch.setenv("PATH", f"{installed / 'bin'}:/usr/bin:/bin")
    for name, value in server.client_environment().items():
        monkeypatch.setenv(name, value)


def run(server: PostgresServer, database: str, *statements: str) -> list[tuple[object, ...]]:
    engine = sqlalchemy.create_engine(server.url(database))
    with engine.begin() as connection:
        rows = [connection.execute(sqlalchemy.text(statement)) for statement in statements]
        answer = [tuple(row) for row in rows[-1]] if rows[-1].returns_rows else []
    engine.dispose()
    return answer


def test_a_database_comes_back_whole_and_belongs_to_its_owner(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use(postgres, monkeypatch)
    for name in ("kept", "empty_kept"):
        postgres.create_database(name)
    run(postgres, "kept", "CREATE EXTENSION pg_trgm", "CREATE TABLE t (x int PRIMARY KEY, y text)",
        "INSERT INTO t VALUES (1, 'one'), (2, NULL)")  # fmt: skip
    run(postgres, "empty_kept", "CREATE ROLE somebody", "ALTER DATABASE empty_kept OWNER TO somebody")
    databases.dump("kept", tmp_path / "dump")
    databases.check_empty("empty_kept")
    databases.restore("empty_kept", tmp_path / "dump")
    assert run(postgres, "empty_kept", "SELECT * FROM t ORDER BY x") == [(1, "one"), (2, None)]
    assert run(postgres, "empty_kept", "SELECT tableowner FROM pg_tables WHERE tablename = 't'") == [("somebody",)]
    with pytest.raises(IgptError, match="database empty_kept is not empty, it has 1 tables"):
        databases.check_empty("empty_kept")


def test_a_restore_that_fails_leaves_the_database_empty(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use(postgres, monkeypatch)
    for name in ("torn", "empty_torn"):
        postgres.create_database(name)
    run(postgres, "torn", "CREATE TABLE a (x int)", "CREATE TABLE b (x int)", "INSERT INTO b VALUES (1)")
    databases.dump("torn", tmp_path / "dump")
    whole = (tmp_path / "dump").read_bytes()
    (tmp_path / "dump").write_bytes(whole[: len(whole) - 40])
    with pytest.raises(IgptError, match="database empty_torn: pg_restore: error") as raised:
        databases.restore("empty_torn", tmp_path / "dump")
    assert len(str(raised.value).splitlines()) == 1
    assert not databases.has_tables("empty_torn")


def test_what_is_wrong_is_one_line(postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use(postgres, monkeypatch)
    with pytest.raises(IgptError, match=r'database nowhere: .*"nowhere" does not exist'):
        databases.dump("nowhere", tmp_path / "dump")
    monkeypatch.setenv("PGPASSWORD", "wrong")
    with pytest.raises(IgptError, match="password authentication failed"):
        databases.check_empty("postgres")
    monkeypatch.setenv("PGPORT", "1")
    with pytest.raises(IgptError, match=r"(?i)connection .*refused"):
        databases.check_empty("postgres")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(IgptError, match="the program pg_dump is not installed; install PostgreSQL's client"):
        databases.dump("postgres", tmp_path / "dump")
