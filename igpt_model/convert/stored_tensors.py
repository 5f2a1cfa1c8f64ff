"""The tensors of foreign files by name, without their values: safetensors, PyTorch's .bin and NumPy's .npz.

Nothing in a file is executed: no pickle is loaded but with PyTorch's unpickler of tensors alone.
"""

import zipfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from igpt_model.convert.weights import StoredTensor
from pipeline.errors import IgptError, first_line

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64, "I64": torch.int64}


def of_safetensors(paths: Sequence[Path], origin: str) -> dict[str, StoredTensor]:
    """The tensors of one or more safetensors files. Raises IgptError when one is damaged."""
    stored: dict[str, StoredTensor] = {}
    for path in paths:
        try:
            file = safe_open(path, framework="pt")
            for name in file.keys():  # noqa: SIM118 (not a mapping)
                entry = file.get_slice(name)
                stored[name] = StoredTensor(
                    shape=tuple(entry.get_shape()),
                    dtype=_DTYPES.get(entry.get_dtype(), torch.int8),  # of the others none is a weight's
                    read=partial(file.get_tensor, name),
                )
        except (SafetensorError, OSError, ValueError) as error:
            raise IgptError(f"{origin}: damaged weights ({first_line(error)})") from None
    return stored


def of_pytorch_files(paths: Sequence[Path], origin: str) -> dict[str, StoredTensor]:
    """The tensors of one or more files of `torch.save`, mapped into memory, not read.

    Raises IgptError for damage, for objects other than tensors, and for files of PyTorch before 1.6, which can only be
    read whole.
    """
    stored: dict[str, StoredTensor] = {}
    for path in paths:
        try:
            with zipfile.ZipFile(path) as archive:
                if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                    raise IgptError(f"{path}: damaged weights (PyTorch compresses no entry)")
            tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except zipfile.BadZipFile:
            raise IgptError(
                f"{path}: damaged weights, or a file of PyTorch before 1.6; have transformers write the model as "
                "safetensors"
            ) from None
        except UnpicklingError:
            raise IgptError(
                f"{path}: damaged, or it holds objects other than tensors, which are not loaded; have transformers "
                "write the model as safetensors"
            ) from None
        except (RuntimeError, ValueError, AttributeError, KeyError, OSError, EOFError) as error:
            raise IgptError(f"{path}: damaged weights ({first_line(error)})") from None
        if not isinstance(tensors, Mapping) or not all(
            isinstance(tensor, Tensor) and tensor.layout == torch.strided for tensor in tensors.values()
        ):
            raise IgptError(f"{path}: not a table of tensors; have transformers write the model as safetensors")
        for name, tensor in tensors.items():
            read = partial(tensor.view, tensor.shape)
            stored[str(name)] = StoredTensor(shape=tuple(tensor.shape), dtype=tensor.dtype, read=read)
    return stored


def of_npz(path: Path) -> dict[str, StoredTensor]:
    """The arrays of an .npz file; of each only the header is read. Raises IgptError for any other file."""
    stored: dict[str, StoredTensor] = {}
    try:
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise IgptError(f"{path}: not an .npz file but one array; give one array a variable")
        for name in file.files:
            shape, dtype = _header(path, f"{name}.npy")
            if dtype.hasobject:
                raise ValueError(f"{name} holds objects")
            stored[name] = StoredTensor(
                shape=shape,
                dtype=getattr(torch, dtype.name, torch.int8),
                read=partial(_array, file, name, str(path)),
            )
    except FileNotFoundError:
        raise IgptError(f"{path}: no such file; give an .npz file of OpenAI's variables") from None
    except (OSError, ValueError, AttributeError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise IgptError(f"{path}: not an .npz file of arrays ({first_line(error)})") from None
    return stored


def _header(path: Path, entry: str) -> tuple[tuple[int, ...], np.dtype]:
    """The shape and type of an array in an .npz file."""
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    with zipfile.ZipFile(path) as archive, archive.open(entry) as stream:
        shape, _, dtype = readers[np.lib.format.read_magic(stream)](stream)
    return shape, dtype


def _array(file: np.lib.npyio.NpzFile, name: str, origin: str) -> Tensor:
    try:
        return torch.from_numpy(file[name])
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise IgptError(f"{origin}: {name} is damaged ({first_line(error)})") from None
