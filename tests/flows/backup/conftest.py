"""A dataset, a finished run and an interrupted one on local disk, which a backup saves."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from flows.backup.save import Saved, save
from flows.config.backup import BackupConfig
from igpt_model.config import PretrainConfig
from igpt_model.training.loop import train
from igpt_model.worker import Worker
from pipeline.dataset import snapshot
from pipeline.dataset.snapshot import Snapshot
from pipeline.store import objects
from tests.igpt_model.training.test_loop import KilledError, Recorder, build_here, digits_snapshot, short_training


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where everything is that is lost later."""

    root: Path
    config: BackupConfig
    training: PretrainConfig

    @property
    def dataset(self) -> Path:
        return self.root / "datasets" / "digits"

    @property
    def data(self) -> Snapshot:
        """The snapshot that both runs are trained on."""
        return snapshot.read(str(self.dataset), 1)

    def run(self, name: str) -> Path:
        return self.root / "runs" / "nightly" / name

    def files(self) -> set[str]:
        """All files in it, relative to it."""
        return {path.relative_to(self.root).as_posix() for path in self.root.rglob("*") if path.is_file()}

    def lose(self) -> None:
        shutil.rmtree(self.root)


def is_left_out(path: str) -> bool:
    """Whether a backup leaves a file of the place out."""
    older = ("runs/nightly/done/checkpoints/00000015", "runs/nightly/done/checkpoints/00000020")
    return path.startswith(("raw/", "datasets/digits-features/", *older)) or "lease" in path or "train-000077" in path


@pytest.fixture(scope="package")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two snapshots, a finished run on the first, one that was killed after step 10, and what a backup leaves out."""
    root = tmp_path_factory.mktemp("made")
    data = digits_snapshot(root)
    (root / "raw" / "0" / "new.png").write_bytes(next((root / "raw" / "1").glob("*.png")).read_bytes())
    build_here(root / "raw", root / "dataset")
    config = short_training(data, root).with_fields(snapshot=1)
    train(config, data, str(root / "runs" / "done"), Worker(), Recorder())

    def die(step: int) -> None:
        if step == 17:
            raise KilledError

    with pytest.raises(KilledError):
        train(config, data, str(root / "runs" / "cut"), Worker(), Recorder(), heartbeat=die)
    return root


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Place:
    """A copy of it, in the folders that buckets are in production."""
    root = tmp_path / "place"
    shutil.copytree(made / "dataset", root / "datasets" / "digits")
    for name in ("done", "cut"):
        shutil.copytree(made / "runs" / name, root / "runs" / "nightly" / name)
    for path in (
        *("datasets/digits/shards/train-000077-0.tar", "datasets/digits/lease/00000003.json"),
        *("datasets/digits-features/net/shard/layer-00.npy", "datasets/digits-measured/0/loss.json"),
        *("runs/nightly/cut/lease/00000001.json", "runs/nightly/turn/lease/00000001.json"),
        *("runs/nightly/cut/attempts.json", "mlflow/1/models/m-1/artifacts/weights.safetensors"),
    ):
        objects.write_bytes(str(root / path), json.dumps({"path": path}).encode())
    config = BackupConfig(
        datasets=(str(root / "datasets"),), runs=(str(root / "runs"),), artifacts=(str(root / "mlflow"),), databases=()
    )
    training = short_training(snapshot.read(str(root / "datasets" / "digits"), 1), tmp_path).with_fields(snapshot=1)
    return Place(root=root, config=config, training=training)


@pytest.fixture
def backups(tmp_path: Path) -> Path:
    return tmp_path / "backups"


@pytest.fixture
def saving(place: Place, backups: Path) -> Callable[[], Saved]:
    """Makes a backup of the place."""
    return lambda: save(place.config, str(backups), "test")
