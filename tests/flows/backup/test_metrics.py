"""Prometheus is told when the newest whole backup began, and not of one that is not whole."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from flows.backup import archive
from flows.backup.metrics import samples
from flows.backup.save import Saved


def told(backups: Path) -> float:
    (sample,) = samples(str(backups))
    assert sample.name == "igpt_backup_began_timestamp_seconds" and not sample.labels
    return sample.value


def test_the_newest_whole_backup_counts(saving: Callable[[], Saved], backups: Path) -> None:
    assert told(backups) == 0, "before the first one, so that the alert can fire"
    before = datetime.now(UTC).replace(microsecond=0)
    first = saving().backup.name
    assert before.timestamp() <= told(backups) <= datetime.now(UTC).timestamp()
    newer = archive.new_name(archive.began(first) + timedelta(days=1))
    (backups / f"{newer}.json").write_bytes((backups / f"{first}.json").read_bytes())
    assert told(backups) == archive.began(first).timestamp() + 86_400
    (backups / "files" / "aa").mkdir(exist_ok=True)
    (backups / "files" / "aa" / "2999-01-01T000000Z.json").write_text("{}")
    (backups / "2999-01-01T000000Z.partial").write_text("{}")
    assert told(backups) == archive.began(newer).timestamp(), "only lists of whole backups"
