"""A shard: a plain WebDataset tar whose samples have a fixed stride, so that a memory-mapped shard IS an array. Pure.

Each image has two members, `{key}.npy` (uint16 [H, W], little-endian) and `{key}.cls` (the label as decimal text). All
header fields but the name, the size and the checksum are constant, so the bytes depend only on keys, tokens and labels.
"""

import io
from functools import cached_property
from pathlib import Path

import numpy as np

from pipeline.errors import IgptError

BLOCK = 512
KEY_LENGTH = 20  # characters of an image's key; the number of a random crop is appended to it
_NAME_LENGTH = 100  # bytes of a member's name in its header
_LABEL_BYTES = 16
_CHECKSUM = slice(148, 156)
_SIZE = slice(124, 136)


def _npy_header(side: int) -> bytes:
    buffer = io.BytesIO()
    header = {"descr": "<u2", "fortran_order": False, "shape": (side, side)}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue()


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _layout(side: int) -> tuple[int, int]:
    """Offset of the tokens in a sample, and the stride between samples, in bytes."""
    npy = _npy_header(side)
    return BLOCK + len(npy), BLOCK + _padded(len(npy) + 2 * side * side) + 2 * BLOCK


def _headers(keys: np.ndarray, extension: bytes, sizes: np.ndarray) -> np.ndarray:
    """USTAR headers of regular files, uint8 [N, 512]; keys are bytes [N] of equal length, sizes int64 [N]."""
    headers = np.zeros((len(keys), BLOCK), np.uint8)

    def put(offset: int, text: bytes) -> None:
        headers[:, offset : offset + len(text)] = np.frombuffer(text, np.uint8)

    length = keys.dtype.itemsize
    headers[:, :length] = keys.view(np.uint8).reshape(len(keys), length)
    put(length, extension)
    put(100, b"0000644\0" + b"0000000\0" + b"0000000\0")  # mode, owner, group
    headers[:, _SIZE] = _octal(sizes, 11)
    put(136, b"00000000000\0")  # modification time 0
    headers[:, _CHECKSUM] = ord(" ")
    put(156, b"0" + b"\0" * 100 + b"ustar\00000")
    sums = headers.sum(1, dtype=np.int64)
    headers[:, 148:155] = _octal(sums, 6)
    return headers


def _octal(values: np.ndarray, digits: int) -> np.ndarray:
    """Zero-padded octal text with a closing NUL, uint8 [N, digits + 1]."""
    shifts = 3 * np.arange(digits - 1, -1, -1)
    text = ((values[:, None] >> shifts) & 7) + ord("0")
    return np.concatenate([text, np.zeros((len(values), 1), np.int64)], 1).astype(np.uint8)


def encode(keys: list[str], tokens_NHW: np.ndarray, labels: np.ndarray) -> bytes:
    """Build a shard from keys (ASCII, of equal length up to 96), token images and labels (-1: no label)."""
    count, side = len(keys), tokens_NHW.shape[1]
    lengths = {len(key) for key in keys} or {KEY_LENGTH}
    if tokens_NHW.shape != (count, side, side) or len(labels) != count or len(lengths) > 1 or max(lengths) > 96:
        raise ValueError(f"{count} keys, tokens of shape {tokens_NHW.shape} and {len(labels)} labels do not match")
    key_array = np.array(keys, f"S{max(lengths)}")
    start, stride = _layout(side)
    token_bytes = 2 * side * side
    label_text = np.array([str(int(label)).encode() for label in labels], f"S{_LABEL_BYTES}")
    body = np.zeros((count, stride), np.uint8)
    body[:, :BLOCK] = _headers(key_array, b".npy", np.full(count, start - BLOCK + token_bytes))
    body[:, BLOCK:start] = np.frombuffer(_npy_header(side), np.uint8)
    body[:, start : start + token_bytes] = tokens_NHW.astype("<u2").reshape(count, side * side).view(np.uint8)
    label_header = stride - 2 * BLOCK
    body[:, label_header : label_header + BLOCK] = _headers(key_array, b".cls", np.char.str_len(label_text))
    body[:, stride - BLOCK : stride - BLOCK + _LABEL_BYTES] = label_text.view(np.uint8).reshape(count, _LABEL_BYTES)
    return body.tobytes() + _end_of_archive(count * stride)


def _end_of_archive(size: int) -> bytes:
    """Two zero blocks, then zeros up to a multiple of 10,240 bytes, as tar writes them."""
    return bytes(-(-(size + 2 * BLOCK) // 10240) * 10240 - size)


class ShardView:
    """Array views of the tokens and labels in a shard's bytes: random access without parsing."""

    def __init__(self, data: np.ndarray, *, samples: int, side: int, name: str) -> None:
        """View a shard's bytes, uint8 [size]. Raises IgptError unless it holds `samples` images of `side`."""
        start, stride = _layout(side)
        expected = samples * stride
        whole = len(data) == expected + len(_end_of_archive(expected))
        # Because of the padding, shards of different counts may have the same size: check that the last sample exists
        # and that nothing follows it.
        if not whole or data[expected] or (samples and not data[expected - stride]):
            raise IgptError(
                f"{name}: {len(data)} bytes are not {samples} samples of {side}x{side}; "
                "the shard is damaged or of another resolution"
            )
        self._records = data[:expected].reshape(samples, stride)
        self.tokens_NHW = self._records[:, start : start + 2 * side * side].view("<u2").reshape(samples, side, side)

    # Labels and keys are read on first use: in a mapped file that touches a page per sample.
    @cached_property
    def labels_N(self) -> np.ndarray:
        """The labels, int64 [N]; -1: no label."""
        label = slice(self._records.shape[1] - BLOCK, self._records.shape[1] - BLOCK + _LABEL_BYTES)
        return self._records[:, label].copy().view(f"S{_LABEL_BYTES}").reshape(-1).astype(np.int64)

    @cached_property
    def keys_N(self) -> np.ndarray:
        """The keys, bytes [N]."""
        names_N = self._records[:, :_NAME_LENGTH].copy().view(f"S{_NAME_LENGTH}").reshape(-1)
        return np.char.partition(names_N, b".")[:, 0] if len(names_N) else names_N

    def key(self, row: int) -> str:
        """The key of one sample."""
        return self._records[row, :_NAME_LENGTH].tobytes().partition(b".")[0].decode()

    @classmethod
    def open(cls, path: Path, *, samples: int, side: int) -> "ShardView":
        """Memory-map a shard on local disk."""
        # An empty file cannot be mapped.
        data = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.empty(0, np.uint8)
        return cls(data, samples=samples, side=side, name=str(path))
