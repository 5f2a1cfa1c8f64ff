"""Scans of containers that are kept in the dataset."""

from dataclasses import replace
from pathlib import Path
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.build.build import build
from pipeline.build.retry import retry_failed
from pipeline.config import DatasetConfig
from pipeline.progress import silent
from pipeline.source import containers
from pipeline.source.members import ScanOptions
from pipeline.source.scan_cache import ScanCache
from pipeline.store import objects
from tests.conftest import run_here, write_tar
from tests.pipeline.build.test_build import rows
from tests.pipeline.build.test_rerun import assert_sound

pytestmark = pytest.mark.usefixtures("without_cluster")


def test_a_scanned_tar_is_not_read_again(
    config: DatasetConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = {str(p.relative_to(config.raw)): p.read_bytes() for p in sorted(Path(config.raw).rglob("*.*"))}
    in_tar = replace(config, raw=str(write_tar(tmp_path / "all.tar", members)))
    build(in_tar)

    def refuse(*_: object) -> None:
        raise AssertionError("the tar is read")

    monkeypatch.setattr(containers.tar_files, "scan", refuse)
    assert build(in_tar).unchanged


def test_a_scan_of_an_earlier_version_is_made_again_and_remakes_nothing(
    config: DatasetConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = {str(p.relative_to(config.raw)): p.read_bytes() for p in sorted(Path(config.raw).rglob("*.*"))}
    write_tar(tmp_path / "tars" / "all.tar", members)
    in_tar = replace(config, raw=str(tmp_path / "tars"))
    monkeypatch.setattr(containers, "SCAN_VERSION", containers.SCAN_VERSION - 1)
    before = build(in_tar)
    monkeypatch.undo()
    with mock.patch("pipeline.cluster.tasks.map_tasks", run_here):
        after = build(in_tar)
    assert after.unchanged and after.snapshot == before.snapshot
    assert len(list((Path(config.dataset) / "scans").iterdir())) == 2


@pytest.mark.parametrize(
    "fields", [{"label_column": "species"}, {"image_column": "photo"}, {"keep_columns": ("owner",)}]
)
def test_a_scan_with_other_columns_is_another_one(fields: dict, tmp_path: Path) -> None:
    table = pa.table({"image": [b"a"], "photo": [b"b"], "label": ["x"], "species": ["cat"], "owner": ["me"]})
    pq.write_table(table, tmp_path / "a.parquet")
    file = next(objects.list_files(str(tmp_path / "a.parquet")))
    names = set()
    for chosen in ({}, fields):
        options = ScanOptions(**chosen)
        scans = ScanCache(str(tmp_path / "dataset"), str(tmp_path), options, keep=True, fresh=False, progress=silent)
        assert [scan.num_rows for scan in scans([file])] == [1]
        names |= set(scans.names)
    assert len(names) == 2


def test_a_damaged_container_is_one_row_in_quarantine_until_it_is_mended(config: DatasetConfig, tmp_path: Path) -> None:
    members = {
        f"n/{number}.png": path.read_bytes() for number, path in enumerate(sorted(Path(config.raw).rglob("*.png")))
    }
    whole = write_tar(tmp_path / "whole.tar", dict(list(members.items())[:9])).read_bytes()
    damaged = Path(config.raw) / "more.tar"
    damaged.write_bytes(whole[:-11_000])
    first = build(config)
    assert first.snapshot.rejected == {"damaged_container": 1} and first.snapshot.images() == 100
    (row,) = rows(config.dataset, "quarantine")
    assert row["uri"] == "more.tar" and "not a readable tar" in row["detail"]
    assert build(config).unchanged and retry_failed(config).recovered == 0
    damaged.write_bytes(whole)
    after = build(config)
    assert after.snapshot.rejected == {} and after.snapshot.images() == 109
    assert_sound(after)
