"""The lookup table of a palette, computed once per machine and cached in its temporary folder."""

import os
from contextlib import suppress

import numpy as np

from pipeline.hashing import sha256
from pipeline.images import palette
from pipeline.operating_system import own_cache

_ENTRIES = 1 << 24
_CHECKSUM_BYTES = 64


def lookup_table(palette_K3: np.ndarray) -> np.ndarray:
    """palette.compute_lookup_table, uint16 [2^24], from the cache if an undamaged copy is there.

    If the cache cannot be written, say on a full disk, or another user has made its folder, the table is not cached.
    """
    try:
        cache = own_cache()
    except OSError:
        cache = None
    if cache is None:
        return palette.compute_lookup_table(palette_K3)
    folder = cache / "tables"
    path = folder / f"{palette.sha256(palette_K3)}.u16"
    try:
        data = path.read_bytes()
    except OSError:
        data = b""
    body, checksum = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
    if len(body) == 2 * _ENTRIES and sha256(body).encode() == checksum:
        return np.frombuffer(body, "<u2").astype(np.uint16, copy=False)
    table = palette.compute_lookup_table(palette_K3)
    body = table.astype("<u2").tobytes()
    partial = path.with_suffix(f".{os.getpid()}.partial")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        partial.write_bytes(body + sha256(body).encode())
        partial.replace(path)
    except OSError:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
    return table
