"""Scans of containers that are kept in the dataset."""

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.build.build import build
from pipeline.config import DatasetConfig
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
