"""Scans of containers that are kept in the dataset."""

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.build.build import build
from pipeline.config import DatasetConfig
from pipeline.dataset import record
from pipeline.hashing import sha256
from pipeline.source import containers
from tests.conftest import write_tar

pytestmark = pytest.mark.usefixtures("without_cluster")


def test_a_scanned_tar_is_not_read_again(
    config: DatasetConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = {str(p.relative_to(config.raw)): p.read_bytes() for p in sorted(Path(config.raw).rglob("*.*"))}
    in_tar = replace(config, raw=str(write_tar(tmp_path / "all.tar", members)))
    build(in_tar)

    def refuse(*_: object) -> None:
        raise AssertionError("the tar is read")

    monkeypatch.setattr("pipeline.source.containers._scan_tar", refuse)
    assert build(in_tar).unchanged


def test_a_scan_of_an_earlier_version_is_found_by_its_name(
    config: DatasetConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was named after the address, the size and the time of the tar."""
    members = {str(p.relative_to(config.raw)): p.read_bytes() for p in sorted(Path(config.raw).rglob("*.*"))}
    tar = write_tar(tmp_path / "tars" / "all.tar", members)
    in_tar = replace(config, raw=str(tmp_path / "tars"))
    first = build(in_tar).snapshot
    (scan,) = (Path(config.dataset) / "scans").iterdir()
    status = tar.stat()
    identity = f"{containers.SCAN_VERSION}\0{tar}\0{status.st_size}\0{status.st_size}-{status.st_mtime_ns}"
    scan.rename(scan.with_name(f"{sha256(identity.encode())[:32]}.parquet"))
    monkeypatch.setattr("pipeline.source.containers._scan_tar", None)
    assert build(in_tar).unchanged
    beside = record.read(first)
    assert beside is not None and beside.scans == (sha256(identity.encode())[:32],)
