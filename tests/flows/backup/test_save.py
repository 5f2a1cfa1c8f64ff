"""What is in a backup, what a second one copies, and when there is none."""

import os
import stat
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from flows.backup import archive, selection
from flows.backup import save as module
from flows.backup.save import Saved, save
from pipeline.dataset import erasures
from pipeline.dataset.erasures import Tombstone
from pipeline.errors import IgptError
from pipeline.store import lease, objects
from tests.flows.backup.conftest import Place, is_left_out


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each backup begins a day after the one before, as its name says."""
    days = iter(range(100))
    monkeypatch.setattr(
        archive, "new_name", lambda now: f"{datetime(2026, 11, 1, tzinfo=UTC) + timedelta(next(days)):%Y-%m-%dT%H%M%SZ}"
    )


def saved_paths(place: Place, saved: Saved) -> set[str]:
    return {os.path.relpath(file.url, place.root) for file in saved.backup.files}


def test_it_has_all_that_a_snapshot_names_and_the_newest_checkpoint_of_a_run(
    place: Place, saving: Callable[[], Saved], backups: Path
) -> None:
    saved = saving()
    everything = place.files()
    assert saved_paths(place, saved) == {path for path in everything if not is_left_out(path)}
    left_out = {path for path in everything if is_left_out(path)}
    assert len({path.split("/")[1] for path in left_out}) >= 3 and any("checkpoints/00000020" in p for p in left_out)
    assert saved.backup.missing == () and archive.names(str(backups)) == [saved.backup.name]
    assert stat.S_IMODE(backups.stat().st_mode) == 0o700
    assert not list(backups.glob(".igpt-backup-*"))


def test_what_keeps_erased_images_out_is_saved(place: Place, saving: Callable[[], Saved]) -> None:
    erasures.begin(str(place.dataset), [Tombstone(key=bytes(32))])
    assert "datasets/digits/erasures/000001.parquet" in saved_paths(place, saving())


def test_a_second_one_copies_only_what_is_new(place: Place, saving: Callable[[], Saved]) -> None:
    first = saving()
    assert first.copied > 20
    objects.write_bytes(str(place.run("cut") / "attempts.json"), b"{}")
    (place.root / "mlflow" / "2.png").write_bytes(b"new")
    second = saving()
    assert second.copied == 2 and len(second.backup.files) == len(first.backup.files) + 1
    assert saving().copied == 0


def test_a_checkpoint_is_left_out_once_the_model_is_registered(place: Place, saving: Callable[[], Saved]) -> None:
    objects.write_bytes(str(place.run("done") / "registration.json"), b'{"model": ""}')
    assert any("done/checkpoints" in path for path in saved_paths(place, saving()))
    objects.write_bytes(str(place.run("done") / "registration.json"), b'{"model": "models:/digits/1"}')
    paths = saved_paths(place, saving())
    assert not any("done/checkpoints" in path for path in paths) and "runs/nightly/done/result.json" in paths
    assert any("cut/checkpoints/00000010/index.json" in path for path in paths)


def test_a_snapshot_that_is_published_meanwhile_is_for_the_next_one(place: Place, saving: Callable[[], Saved]) -> None:
    (place.dataset / "snapshots" / "000002.json").rename(place.root / "later.json")
    saved = saving()
    (latest,) = [file for file in saved.backup.files if file.url.endswith("LATEST")]
    assert (place.dataset / "LATEST").read_text() == "2\n"
    with archive.fetched(str(place.root.parent / "backups"), latest.sha256, place.root) as path:
        assert path.read_text() == "1\n"


def test_a_checkpoint_that_is_removed_for_a_newer_one_meanwhile(
    place: Place, saving: Callable[[], Saved], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, asked = selection.newest_checkpoint, []

    def stale(run: str) -> selection.Selected:
        asked.append(run)
        selected = real(run)
        if asked.count(run) > 1:
            return selected
        gone = [replace(file, url=file.url.replace("/0000", "/9999")) for file in selected.files]
        return replace(selected, files=tuple(gone))

    monkeypatch.setattr(module.selection, "newest_checkpoint", stale)
    saved = saving()
    assert saved.backup.missing == () and len(asked) == 4
    assert any("cut/checkpoints/00000010/index.json" in path for path in saved_paths(place, saved))


def test_what_is_missing_is_told_and_the_rest_is_saved(place: Place, saving: Callable[[], Saved]) -> None:
    gone = str(place.dataset / place.data.shards[0].path)
    objects.delete(gone)
    (place.dataset / "snapshots" / "000002.json").write_bytes(b"{")
    saved = saving()
    assert set(saved.backup.missing) == {gone, str(place.dataset / "snapshots" / "000002.json")}
    assert "runs/nightly/cut/run.json" in saved_paths(place, saved)


def test_one_that_is_interrupted_leaves_no_list_and_the_next_one_uses_its_files(
    place: Place, saving: Callable[[], Saved], backups: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = module.selection.artifacts

    def fail(root: str) -> None:
        raise IgptError("the store does not answer")

    monkeypatch.setattr(module.selection, "artifacts", fail)
    with pytest.raises(IgptError, match="does not answer"):
        saving()
    assert archive.names(str(backups)) == []
    with pytest.raises(IgptError, match="no whole backup there"):
        archive.read(str(backups))
    monkeypatch.setattr(module.selection, "artifacts", real)
    assert saving().copied == 1, "the file of MLflow, which the first had not come to"


def test_old_backups_are_removed_with_the_files_that_only_they_have(
    place: Place, backups: Path, saving: Callable[[], Saved]
) -> None:
    config = replace(place.config, keep=2)
    changing = place.run("cut") / "attempts.json"
    for number in range(3):
        changing.write_text(f'{{"attempt": {number}}}')
        last = save(config, str(backups), "test")
    names = archive.names(str(backups))
    assert len(names) == 2 and last.backup.name == names[-1] and last.pruned.files == 1
    contents = set()
    for name in names:
        backup = archive.read(str(backups), name)
        assert {file.sha256 for file in backup.files} <= set(archive.stored(str(backups)))
        (file,) = [file for file in backup.files if file.url == str(changing)]
        contents.add(Path(archive.file_url(str(backups), file.sha256)).read_text())
    assert contents == {'{"attempt": 1}', '{"attempt": 2}'}


def test_two_at_once_are_refused(saving: Callable[[], Saved], backups: Path) -> None:
    with lease.hold(str(backups)), pytest.raises(lease.LeaseHeldError, match="is working on it"):
        saving()
    assert archive.names(str(backups)) == []


def test_no_backup_is_made_of_a_place_that_is_being_restored(place: Place, saving: Callable[[], Saved]) -> None:
    objects.write_bytes(str(place.root / "runs" / selection.RESTORING), b'{"backup": "2026-11-01T000000Z"}')
    with pytest.raises(IgptError, match="a restore into it has not ended"):
        saving()
