"""A restore gives back what a training and a reader need, or writes nothing; an interrupted one goes on."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.backup import archive, selection
from flows.backup import restore as module
from flows.backup.restore import restore
from flows.backup.save import Saved
from igpt_model.runs import checkpoint
from igpt_model.runs.result import read_result
from igpt_model.training.loop import train
from igpt_model.worker import Worker
from pipeline.dataset import snapshot
from pipeline.errors import IgptError
from pipeline.inspect.verify import verify
from pipeline.store import objects
from tests.conftest import Command
from tests.flows.backup.conftest import Place, is_left_out
from tests.igpt_model.training.test_loop import Recorder, final_weights


def test_after_it_a_training_goes_on_as_if_nothing_had_been_lost(
    place: Place, saving: Callable[[], Saved], backups: Path
) -> None:
    saving()
    before, weights = place.files(), final_weights(str(place.run("done")))
    place.lose()
    restored = restore(str(backups))
    assert place.files() == {path for path in before if not is_left_out(path)}
    assert len(restored.backup.files) == len(place.files())
    for number in (1, 2):
        assert verify(snapshot.read(str(place.dataset), number)) == []
    assert snapshot.latest_number(str(place.dataset)) == 2
    cut = str(place.run("cut"))
    assert checkpoint.marked_steps(cut) == [10]
    config = place.training.with_fields(dataset=str(place.dataset))
    result = train(config, place.data, cut, Worker(), Recorder())
    expected = read_result(str(place.run("done")))
    assert expected is not None and result.restarts == 1
    assert (result.validation_loss, result.train_loss) == (expected.validation_loss, expected.train_loss)
    resumed = final_weights(cut)
    assert all((weights[name] == resumed[name]).all() for name in weights)


@pytest.mark.parametrize("root", ["datasets", "runs", "mlflow"])
def test_a_place_that_is_not_empty_is_refused_and_nothing_is_written(
    place: Place, saving: Callable[[], Saved], backups: Path, root: str
) -> None:
    saving()
    place.lose()
    objects.write_bytes(str(place.root / root / "somebody's.txt"), b"mine")
    with pytest.raises(IgptError, match=f"{root} is not empty, it has .*somebody's.txt.*; nothing was written"):
        restore(str(backups))
    assert place.files() == {f"{root}/somebody's.txt"}


def test_an_interrupted_one_shows_nothing_half_written_and_goes_on(
    place: Place, saving: Callable[[], Saved], backups: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = saving().backup.name
    before = place.files()
    place.lose()
    real = module._put_back
    steps: list[int] = []

    def stop_before_the_last(*arguments: object) -> int:
        steps.append(len(steps))
        if len(steps) == 3:
            raise IgptError("the store does not answer")
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "_put_back", stop_before_the_last)
    with pytest.raises(IgptError, match="does not answer"):
        restore(str(backups))
    shown = place.files()
    assert "datasets/digits/snapshots/000001.json" in shown
    assert not any(path.endswith(("LATEST", "run.json", "result.json")) for path in shown)
    with pytest.raises(IgptError, match="no dataset snapshot there"):
        snapshot.read(str(place.dataset))
    monkeypatch.setattr(module, "_put_back", real)
    (backups / "2030-01-01T000000Z.json").write_bytes((backups / f"{name}.json").read_bytes().replace(b"2026", b"2030"))
    newer = archive.read(str(backups)).name
    assert newer != name
    with pytest.raises(IgptError, match=f"a restore of backup {name} into it has not ended"):
        restore(str(backups))
    restore(str(backups), name)
    assert place.files() == {path for path in before if not is_left_out(path)}


def test_a_backup_without_all_of_its_files_is_not_restored(
    place: Place, saving: Callable[[], Saved], backups: Path
) -> None:
    saved = saving().backup
    place.lose()
    file = max(saved.files, key=lambda file: file.bytes)
    path = Path(archive.file_url(str(backups), file.sha256))
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(IgptError, match=f"backup {saved.name} is damaged, 1 of its files are missing or cut off"):
        restore(str(backups))
    path.unlink()
    with pytest.raises(IgptError, match="1 of its files are missing"):
        restore(str(backups))
    assert not place.root.exists()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(IgptError, match="its checksum is another"):
        restore(str(backups))
    assert objects.exists(str(place.root / "runs" / selection.RESTORING)), "so nothing takes the place for whole"


def test_the_command_line(igpt: Callable[..., Command], place: Place, backups: Path) -> None:
    fields = [f"{name}=[{getattr(place.config, name)[0]}]" for name in ("datasets", "runs", "artifacts")]
    assert "no whole backup in" in igpt("backup", "ls", backups).out
    nothing = igpt("backup", "restore", backups)
    assert nothing.code == 2 and "no whole backup there" in nothing.err
    saved = igpt("backup", "save", backups, *fields, "databases=[]", "--json")
    assert saved.code == 0, saved.err
    told = json.loads(saved.out)
    assert told["files"] == told["copied"] or told["files"] > told["copied"] > 20
    (listed,) = json.loads(igpt("backup", "ls", backups, "--json").out)
    assert listed["backup"] == told["backup"] and listed["files"] == told["files"] and listed["missing"] == 0
    refused = igpt("backup", "restore", backups)
    (line,) = refused.err.splitlines()
    assert refused.code == 2 and "is not empty" in line
    objects.delete(str(place.dataset / place.data.shards[0].path))
    incomplete = igpt("backup", "save", backups, *fields, "databases=[]")
    assert incomplete.code == 1 and "missing: " in incomplete.out and "is whole: 0 databases" in incomplete.out
    place.lose()
    restored = igpt("backup", "restore", backups, "--name", told["backup"])
    assert restored.code == 0 and f"backup {told['backup']} is restored: 0 databases" in restored.out
    assert igpt("dataset", "verify", place.dataset).code == 0
    for wrong, what in ((("keep=0",), "keep is 0"), (("runs=[s3://a, s3://a/b]",), "is inside of"),
                        (("databases=[a-b]",), "letters, digits")):  # fmt: skip
        bad = igpt("backup", "save", backups, *wrong)
        assert bad.code == 2 and what in bad.err and len(bad.err.splitlines()) == 1
    assert igpt("backup", "save", backups, *fields, "databases=[nowhere]").code == 2
