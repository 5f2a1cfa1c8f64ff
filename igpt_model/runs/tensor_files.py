"""How the files of a checkpoint hold its tensors, and reading those that are whole: all that opening a model needs.

sharded.py writes the files, and reads them into tensors that are spread over ranks; it takes a second to load.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from pipeline.hashing import sha256_of_file


@dataclass(frozen=True, kw_only=True)
class FileChecksum:
    """Size and SHA-256 of a file."""

    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A box of a tensor, and the file in which it lies."""

    file: str
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """A tensor as its pieces."""

    dtype: str
    """As PyTorch names it: float32."""
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, kw_only=True)
class Index:
    """The location of each tensor, by name, and the checksums of the files."""

    files: dict[str, FileChecksum]
    tensors: dict[str, StoredTensor]

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> "Index":
        """The index of what asdict made of it, after JSON. Raises KeyError or TypeError when it is none."""
        tensors = {
            name: StoredTensor(
                dtype=tensor["dtype"],
                shape=tuple(tensor["shape"]),
                pieces=tuple(
                    Piece(file=piece["file"], offsets=tuple(piece["offsets"]), sizes=tuple(piece["sizes"]))
                    for piece in tensor["pieces"]
                ),
            )
            for name, tensor in fields["tensors"].items()
        }
        return cls(
            files={name: FileChecksum(**checksum) for name, checksum in fields["files"].items()}, tensors=tensors
        )


def checksum_of(path: Path) -> FileChecksum:
    """Size and SHA-256 of a local file."""
    return FileChecksum(bytes=path.stat().st_size, sha256=sha256_of_file(path))


def piece_name(tensor: str, offsets: Sequence[int]) -> str:
    """The name of a piece in its file."""
    return tensor if not any(offsets) else f"{tensor}@{'.'.join(map(str, offsets))}"


def box_of(offsets: Sequence[int], sizes: Sequence[int]) -> tuple[slice, ...]:
    """A box as an index of its tensor."""
    return tuple(slice(begin, begin + size) for begin, size in zip(offsets, sizes, strict=True))


def read_whole(index: Index, prefix: str, open_file: Callable[[str], Path]) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, in float32 on the CPU, put together from their pieces.

    `open_file` gives the local path of a verified file, and may be asked for one again. Raises what it raises.
    """
    tensors = {name: torch.empty(stored.shape) for name, stored in index.tensors.items() if name.startswith(prefix)}
    by_file: dict[str, list[tuple[str, Piece]]] = {}
    for name in tensors:
        for piece in index.tensors[name].pieces:
            by_file.setdefault(piece.file, []).append((name, piece))
    for file_name, pieces in sorted(by_file.items()):
        with safetensors.safe_open(open_file(file_name), framework="pt") as file:
            for name, piece in pieces:
                box = box_of(piece.offsets, piece.sizes)
                tensors[name][box].copy_(file.get_tensor(piece_name(name, piece.offsets)))
    return tensors
