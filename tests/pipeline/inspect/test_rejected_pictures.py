"""Rejected images with what can be seen of them: objects, members of containers, damaged ones; of each reason some."""

import io
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from pipeline.build.build import build
from pipeline.config import DatasetConfig
from pipeline.dataset.keys import key_of
from pipeline.inspect.rejected_pictures import RejectedPicture, rejected_pictures
from tests.conftest import run_here, write_tar


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


NOISE = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
SMALL = np.full((5, 5, 3), (200, 30, 30), np.uint8)
FILES = {
    **{f"good{number}.png": png(np.roll(NOISE, number, 0)) for number in range(20)},
    "cut.png": png(NOISE)[:6000],
    "small.png": png(SMALL),
    "text.png": b"no image",
    **{f"tiny{number}.png": png(SMALL[:number, :4]) for number in range(1, 5)},
}


def shown(raw: Path, root: Path, per_reason: int = 8) -> dict[str, RejectedPicture]:
    config = DatasetConfig(
        raw=str(raw), dataset=str(root / "dataset"), resolution=8, colours=4, max_reject_fraction=0.9,
        validation_fraction=0.2, test_fraction=0.2, samples_per_shard=5,
    )  # fmt: skip
    with mock.patch("pipeline.cluster.tasks.map_tasks", run_here):
        images = rejected_pictures(build(config).snapshot, config, per_reason)
    assert [image.reason for image in images] == sorted(image.reason for image in images)
    return {image.uri.replace("#", "/").rpartition("/")[2]: image for image in images}


def check(images: dict[str, RejectedPicture]) -> None:
    assert set(images) == {name for name in FILES if not name.startswith("good")}
    assert images["text.png"].reason == "not_an_image" and images["text.png"].pixels is None
    small = images["small.png"].pixels
    assert small is not None and (small == SMALL[0, 0]).all() and images["small.png"].reason == "too_small"
    cut = images["cut.png"].pixels
    assert images["cut.png"].reason == "truncated" and cut is not None
    assert cut[:20].std() > 40 and cut[-8:].std() == 0, "the upper part is there"


def test_objects(tmp_path: Path) -> None:
    for name, data in FILES.items():
        (tmp_path / "raw").mkdir(exist_ok=True)
        (tmp_path / "raw" / name).write_bytes(data)
    images = shown(tmp_path / "raw", tmp_path)
    check(images)
    assert images["cut.png"].key == key_of("cut.png")


def test_members_of_a_tar(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    write_tar(tmp_path / "raw" / "all#1.tar", FILES)
    check(shown(tmp_path / "raw", tmp_path))


def test_some_of_each_reason(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    write_tar(tmp_path / "raw" / "all.tar", FILES)
    images = shown(tmp_path / "raw", tmp_path, per_reason=2)
    assert sorted(image.reason for image in images.values()) == ["not_an_image", "too_small", "too_small", "truncated"]


def test_images_that_are_gone_have_no_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "raw").mkdir()
    for name, data in FILES.items():
        (tmp_path / "raw" / name).write_bytes(data)
    first = shown(tmp_path / "raw", tmp_path)["small.png"]
    (tmp_path / "raw" / "small.png").unlink()
    config = DatasetConfig(raw=str(tmp_path / "raw"), dataset=str(tmp_path / "dataset"), resolution=8, colours=4)
    from pipeline.dataset import snapshot

    with mock.patch("pipeline.cluster.tasks.map_tasks", run_here):
        again = rejected_pictures(snapshot.read(config.dataset), config)
    assert [image.pixels is None for image in again if image.key == first.key] == [True]
