"""The cache of lookup tables: an undamaged table is read, any other is computed."""

import tempfile
from pathlib import Path

import numpy as np
import pytest

from pipeline.hashing import sha256
from pipeline.images import palette, palette_table

PALETTE = np.array([[-1, -1, -1], [0, 0.5, 1], [1, 1, 1]], np.float32)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary folder for this test alone."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_cached_table_is_read_and_a_damaged_one_computed_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = palette_table.lookup_table(PALETTE)
    assert np.array_equal(table, palette.compute_lookup_table(PALETTE))
    (file,) = cache.rglob("*.u16")
    computed: list[int] = []
    monkeypatch.setattr(palette, "compute_lookup_table", lambda palette_K3: computed.append(1) or table)
    assert np.array_equal(palette_table.lookup_table(PALETTE), table) and not computed
    whole = file.read_bytes()
    for damaged in (b"", whole[:-1], bytes([whole[0] ^ 1]) + whole[1:]):
        file.write_bytes(damaged)
        computed.clear()
        assert np.array_equal(palette_table.lookup_table(PALETTE), table) and computed
        assert file.read_bytes() == whole


def test_a_table_that_another_user_has_made_is_not_taken(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = palette_table.lookup_table(PALETTE)
    (file,) = cache.rglob("*.u16")
    wrong = np.zeros(1 << 24, "<u2").tobytes()
    file.write_bytes(wrong + sha256(wrong).encode())
    assert not palette_table.lookup_table(PALETTE).any(), "a table of one's own is taken as it is"
    folder = file.parents[1]
    for mode in (0o777, 0o720):
        folder.chmod(mode)
        assert np.array_equal(palette_table.lookup_table(PALETTE), table)
    folder.chmod(0o755)
    palette_table.lookup_table(PALETTE)
    assert folder.stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr("pipeline.operating_system.os.getuid", lambda: 12345)
    folder.rename(folder.with_name("igpt-cache-12345"))
    assert np.array_equal(palette_table.lookup_table(PALETTE), table)


def test_without_a_writable_cache_the_table_is_computed(cache: Path) -> None:
    for folder in cache.iterdir():
        folder.rmdir()
    (cache / f"igpt-cache-{palette_table.os.getuid()}").write_text("a file in the place of the folder")
    table = palette_table.lookup_table(PALETTE)
    assert np.array_equal(table, palette.compute_lookup_table(PALETTE))
