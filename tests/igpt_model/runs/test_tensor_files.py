"""Tensors are put together from pieces in several files, and an index survives JSON."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import safetensors.torch
import torch

from igpt_model.runs.tensor_files import Index, Piece, StoredTensor, box_of, checksum_of, piece_name, read_whole


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    shapes = {"weights.a": (4, 3), "weights.b": (), "optimizer.a": (4, 3)}
    return {name: torch.randn(shape, generator=random) for name, shape in shapes.items()}


@pytest.fixture
def index(tensors: dict[str, torch.Tensor], tmp_path: Path) -> Index:
    """The index of two files: `a` is split by rows between them, `b` lies in the first."""
    stored = {}
    files: dict[str, dict[str, torch.Tensor]] = {"one.safetensors": {}, "two.safetensors": {}}
    for name, tensor in tensors.items():
        boxes = [((0, 0), (1, 3)), ((1, 0), (3, 3))] if tensor.ndim else [((), ())]
        pieces = []
        for file, (offsets, sizes) in zip(files, boxes, strict=False):
            files[file][piece_name(name, offsets)] = tensor[box_of(offsets, sizes)].contiguous()
            pieces.append(Piece(file=file, offsets=offsets, sizes=sizes))
        stored[name] = StoredTensor(dtype="float32", shape=tuple(tensor.shape), pieces=tuple(pieces))
    for file, content in files.items():
        safetensors.torch.save_file(content, tmp_path / file)
    return Index(files={file: checksum_of(tmp_path / file) for file in files}, tensors=stored)


def test_whole_tensors_are_read_by_the_beginning_of_their_name(
    index: Index, tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    opened: list[str] = []
    read = read_whole(index, "weights.", lambda name: (opened.append(name), tmp_path / name)[1])
    assert read.keys() == {"weights.a", "weights.b"}
    assert all(torch.equal(value, tensors[name]) for name, value in read.items())
    assert opened == ["one.safetensors", "two.safetensors"]


def test_an_index_is_itself_after_json(index: Index) -> None:
    fields = json.loads(json.dumps(asdict(index)))
    assert Index.from_fields(fields) == index
    del fields["tensors"]["weights.a"]["pieces"][1]["file"]
    with pytest.raises(KeyError):
        Index.from_fields(fields)


def test_a_mark_changes_with_the_file(index: Index, tmp_path: Path) -> None:
    path = tmp_path / "two.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert checksum_of(path).bytes == index.files[path.name].bytes
    assert checksum_of(path).sha256 != index.files[path.name].sha256
