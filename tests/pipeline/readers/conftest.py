"""A snapshot with everything that a reader may meet: many shards, two crops an image, kept columns, no class."""

import csv
import shutil
from pathlib import Path
from unittest import mock

import pytest

from pipeline.build.build import build
from pipeline.config import DatasetConfig
from pipeline.dataset.snapshot import Snapshot
from tests.conftest import run_here


def write_source(image_folder: Path, folder: Path) -> None:
    """100 images below folder/raw, and a folder/labels.csv: 20 of no class, 80 of flower and temple; with licences."""
    shutil.copytree(image_folder, folder / "raw")
    names = sorted(path.relative_to(folder / "raw").as_posix() for path in (folder / "raw").glob("*/*"))
    with (folder / "labels.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file_name", "label", "licence"])
        for number, name in enumerate(names):
            label = name.split("/")[0]
            rows.writerow([name, "" if label == "digit" else label, f"CC-{number % 3}"])


@pytest.fixture(scope="package")
def built(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """These images at 8x8 pixels, in many shards, with two crops of each training image."""
    folder = tmp_path_factory.mktemp("readers")
    write_source(image_folder, folder)
    config = DatasetConfig(
        raw=str(folder / "raw"),
        dataset=str(folder / "dataset"),
        labels=str(folder / "labels.csv"),
        keep_columns=("licence",),
        resolution=8,
        colours=24,
        crops_per_image=2,
        samples_per_shard=12,
        validation_fraction=0.15,
        test_fraction=0.1,
    )
    with mock.patch("pipeline.cluster.tasks.map_tasks", run_here):
        return build(config).snapshot


@pytest.fixture
def damaged(built: Snapshot, tmp_path: Path) -> str:
    """A copy of the dataset in which a byte of a training shard's pixels is another."""
    shutil.copytree(built.dataset, tmp_path / "damaged")
    path = tmp_path / "damaged" / built.of_split("train")[0].path
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(data)
    return str(tmp_path / "damaged")
