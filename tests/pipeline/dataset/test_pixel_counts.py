"""Pixel counts: every token once, read as written, refused when damaged."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.dataset import pixel_counts
from pipeline.errors import IgptError


@pytest.mark.parametrize("images", [0, 1, 700])
def test_every_token_is_counted_at_its_position(images: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixel_counts, "_TOKENS_AT_ONCE", 4096)
    tokens_NHW = np.random.default_rng(0).integers(0, 9, (images, 8, 8)).astype(np.uint16)
    counts_TK = pixel_counts.count(tokens_NHW, 9)
    expected = [[(tokens_NHW[:, y, x] == colour).sum() for colour in range(9)] for y in range(8) for x in range(8)]
    assert counts_TK.tolist() == expected


@pytest.mark.parametrize("largest", [7, 2**40])
def test_counts_are_read_as_written(tmp_path: Path, largest: int) -> None:
    counts_TK = np.array([[0, largest], [1, 2]], np.int64)
    name = pixel_counts.write(str(tmp_path), counts_TK)
    assert np.array_equal(pixel_counts.read(str(tmp_path), name), counts_TK)
    path = tmp_path / pixel_counts.path_of(name)
    assert np.array_equal(np.load(path), counts_TK), "anybody can read them"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    with pytest.raises(IgptError, match="damaged"):
        pixel_counts.read(str(tmp_path), name)
    path.unlink()
    with pytest.raises(IgptError, match="gone"):
        pixel_counts.read(str(tmp_path), name)


def test_large_arrays_are_not_kept() -> None:
    assert pixel_counts.are_kept(32, 512) and pixel_counts.are_kept(64, 512)
    assert not pixel_counts.are_kept(256, 65536)
