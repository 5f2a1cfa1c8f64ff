"""Databases of servers are created once and copied; a server that has one keeps it."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.rigs.databases import VARIABLE, with_databases


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "kept"
    folder.mkdir()
    monkeypatch.setenv(VARIABLE, str(folder))
    return folder


class Server:
    """Creates a table in its database if that is not there, and keeps the database open."""

    def __init__(self, database: Path, content: str) -> None:
        self.database, self.content = database, content
        self.had_table = False

    @contextmanager
    def running(self, kind: str = "one") -> Iterator["Server"]:
        with closing(with_databases(kind, [self.database], self.start)):
            yield self

    def start(self) -> sqlite3.Connection:
        self.database.parent.mkdir(exist_ok=True)
        connection = sqlite3.connect(self.database)
        connection.execute("PRAGMA journal_mode = WAL")  # what is committed is not in the database's file at first
        self.had_table = bool(connection.execute("SELECT name FROM sqlite_master").fetchall())
        if not self.had_table:
            connection.execute("CREATE TABLE content (value TEXT)")
            connection.execute("INSERT INTO content VALUES (?)", (self.content,))
            connection.commit()
        return connection

    def value(self) -> str:
        with closing(sqlite3.connect(self.database)) as connection:
            return str(connection.execute("SELECT value FROM content").fetchone()[0])


@pytest.mark.usefixtures("kept")
def test_the_second_server_gets_a_copy_and_its_changes_are_its_own(tmp_path: Path) -> None:
    first, second, third = (Server(tmp_path / name / "some.db", name) for name in ("first", "second", "third"))
    with first.running():
        assert not first.had_table
        with second.running():
            assert second.had_table and second.value() == "first"
            with closing(sqlite3.connect(second.database)) as connection, connection:
                connection.execute("UPDATE content SET value = 'changed'")
        assert first.value() == "first"
    with third.running():
        assert third.had_table and third.value() == "first"


@pytest.mark.usefixtures("kept")
def test_a_server_that_is_started_again_keeps_its_database(tmp_path: Path) -> None:
    own = Server(tmp_path / "own" / "some.db", "own")
    with closing(own.start()):
        pass
    with Server(tmp_path / "first" / "some.db", "first").running(), own.running():
        assert own.value() == "own"


@pytest.mark.usefixtures("kept")
def test_servers_of_another_kind_get_no_copy(tmp_path: Path) -> None:
    other = Server(tmp_path / "other" / "some.db", "other")
    with Server(tmp_path / "first" / "some.db", "first").running(), other.running(kind="another"):
        assert other.value() == "other"


def test_without_a_folder_every_server_creates_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    second = Server(tmp_path / "second" / "some.db", "second")
    with Server(tmp_path / "first" / "some.db", "first").running(), second.running():
        assert second.value() == "second"
