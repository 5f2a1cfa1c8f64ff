"""What the demo runs with: the digits, or anybody's images."""

from pathlib import Path

import pytest

from flows.config.demo import DIGITS_URL, demo_config
from pipeline.errors import IgptError


def test_the_digits_without_a_source() -> None:
    config = demo_config(None, ["pretrain.steps=7"])
    assert (config.dataset.raw, config.dataset.resolution, config.pretrain.optimizer.steps) == (DIGITS_URL, 8, 7)
    assert config.pretrain.keeping.runs == "s3://runs/demo"


def test_anybodys_images_get_a_dataset_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my photos.tar").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    config = demo_config("my photos.tar", [])
    assert config.dataset.raw == str(tmp_path / "my photos.tar")
    assert config.dataset.dataset == "s3://datasets/my photos"
    assert config.dataset.resolution > 8
    assert config.pretrain.tracking.model_name != demo_config(None, []).pretrain.tracking.model_name
    assert demo_config("s3://bucket/photos/", []).dataset.dataset == "s3://datasets/photos"


@pytest.mark.parametrize(
    ("raw", "override", "message"),
    [
        ("no/such/folder", "pretrain.steps=7", "no/such/folder: nothing is there"),
        (None, "pretrain.widht=64", "unknown field pretrain.widht"),
        (None, "dataset.resolution=7", "resolution is 7"),
    ],
)
def test_mistakes_are_told_before_anything_is_started(raw: str | None, override: str, message: str) -> None:
    with pytest.raises(IgptError, match=message):
        demo_config(raw, [override])
