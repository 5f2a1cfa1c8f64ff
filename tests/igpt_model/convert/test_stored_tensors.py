"""Files of weights from strangers: shapes are told without values, damage in one line, and no pickle is executed."""

import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from igpt_model.convert.stored_tensors import of_npz, of_pytorch_files, of_safetensors
from igpt_model.convert.weights import StoredTensor
from pipeline.errors import IgptError

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}


def read(path: Path) -> dict[str, StoredTensor]:
    if path.suffix == ".npz":
        return of_npz(path)
    return (of_pytorch_files if path.suffix == ".bin" else of_safetensors)([path], "here")


def write(path: Path) -> None:
    match path.suffix:
        case ".npz":
            np.savez(path, **{name: tensor.float().numpy() for name, tensor in TENSORS.items()})
        case ".bin":
            torch.save(TENSORS, path)
        case _:
            save_file(TENSORS, path)


@pytest.mark.parametrize("name", ["w.safetensors", "w.bin", "w.npz"])
def test_shapes_are_told_first_and_values_when_asked_for(name: str, tmp_path: Path) -> None:
    write(tmp_path / name)
    stored = read(tmp_path / name)
    assert {key: tensor.shape for key, tensor in stored.items()} == {"a": (2, 3), "b": (4,)}
    assert stored["a"].dtype == torch.float32
    assert all(torch.equal(stored[key].read(), tensor.to(stored[key].dtype)) for key, tensor in TENSORS.items())


class Executed:
    """Makes the unpickler create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.mkdir, (str(self.path),)


def with_code(path: Path) -> None:
    victim = path.parent / "executed"
    if path.suffix == ".npz":
        np.savez(path, a=np.array([Executed(victim)], object))
    else:
        torch.save({"a": Executed(victim)}, path)


def legacy(path: Path) -> None:
    torch.save(TENSORS, path, _use_new_zipfile_serialization=False)


def plain_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"a": Executed(path.parent / "executed")}))


def compressed(path: Path) -> None:
    buffer = io.BytesIO()
    torch.save(TENSORS, buffer)
    with zipfile.ZipFile(buffer) as stored, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry in stored.namelist():
            archive.writestr(entry, stored.read(entry))


def not_tensors(path: Path) -> None:
    torch.save({"a": 3}, path)


def cut(path: Path) -> None:
    write(path)
    path.write_bytes(path.read_bytes()[:-40])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def no_weights(path: Path) -> None:
    path.write_text("<html>404</html>")


def huge_header(path: Path) -> None:
    """A header that claims a terabyte in a file of a hundred bytes."""
    header = json.dumps({"a": {"dtype": "F32", "shape": [2**38], "data_offsets": [0, 2**40]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)


def one_array(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.ones(3))


def other_entry(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", b"no array")


DAMAGE = {
    "w.safetensors": {"cut": cut, "empty": empty, "no weights": no_weights, "a huge header": huge_header},
    "w.bin": {
        **{"cut": cut, "empty": empty, "no weights": no_weights, "code": with_code, "a plain pickle": plain_pickle},
        **{"before 1.6": legacy, "compressed": compressed, "not tensors": not_tensors},
    },
    "w.npz": {
        **{"cut": cut, "empty": empty, "no weights": no_weights, "code": with_code},
        **{"one array": one_array, "no array": other_entry},
    },
}


@pytest.mark.parametrize(("name", "what"), [(name, what) for name, kinds in DAMAGE.items() for what in kinds])
def test_damage_is_one_line_and_nothing_is_executed(name: str, what: str, tmp_path: Path) -> None:
    DAMAGE[name][what](tmp_path / name)
    with pytest.raises(IgptError) as caught:
        read(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith((str(tmp_path / name), "here: "))
    assert not (tmp_path / "executed").exists()
