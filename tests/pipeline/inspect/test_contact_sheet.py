"""Contact sheets of raw images beside their tokens."""

import io
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.build.build import build
from pipeline.config import DatasetConfig
from pipeline.dataset import snapshot
from pipeline.errors import IgptError
from pipeline.inspect.contact_sheet import contact_sheet

pytestmark = pytest.mark.usefixtures("without_cluster")


def test_a_contact_sheet_shows_the_raw_image_beside_its_tokens(twice_built: DatasetConfig) -> None:
    chosen = snapshot.read(twice_built.dataset)
    sheet = np.asarray(Image.open(io.BytesIO(contact_sheet(chosen, count=3, seed=1))).convert("RGB")).astype(float)
    assert contact_sheet(chosen, count=3, seed=1) != contact_sheet(chosen, count=3, seed=2)
    for number in range(3):
        left = 8 + number * (2 * 128 + 16)
        raw, quantized = sheet[8:136, left : left + 128], sheet[8:136, left + 128 : left + 256]
        blocks = raw.reshape(16, 8, 16, 8, 3).mean((1, 3))
        assert np.abs(blocks - quantized[4::8, 4::8]).mean() < 25
        assert np.array_equal(quantized, quantized[::8, ::8].repeat(8, 0).repeat(8, 1))


def test_a_contact_sheet_without_raw_images_is_refused(twice_built: DatasetConfig, tmp_path: Path) -> None:
    shutil.copytree(twice_built.raw, tmp_path / "raw")
    moved = replace(twice_built, raw=str(tmp_path / "raw"), dataset=str(tmp_path / "dataset"))
    build(moved)
    shutil.rmtree(tmp_path / "raw")
    with pytest.raises(IgptError, match="none of 3 raw images is where the index says"):
        contact_sheet(snapshot.read(moved.dataset), count=3, seed=0)
