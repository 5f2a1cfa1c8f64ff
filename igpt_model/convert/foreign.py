"""Opens a model of another implementation by URL or path, in the form in which people have it, and says whence it came.

Local files are read where they are; those of a store are downloaded into a temporary folder.
"""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from igpt_model.convert import hugging_face
from igpt_model.convert.hugging_face import from_hugging_face
from igpt_model.convert.openai import from_openai
from igpt_model.model.bundle import ModelBundle
from pipeline.errors import IgptError
from pipeline.hashing import sha256_of_file
from pipeline.printable import printable
from pipeline.store import objects

HUGGING_FACE, OPENAI = "Hugging Face folder", "OpenAI's variables"
_CARD = "README.md"
_MAX_CARD_BYTES = 1 << 20
_LONGEST_LICENCE = 100


@dataclass(frozen=True, kw_only=True)
class ForeignModel:
    """A converted model and its origin."""

    bundle: ModelBundle
    form: str
    """HUGGING_FACE or OPENAI."""
    licence: str | None
    """What the card of the folder says; None: nothing."""
    files: Mapping[str, str]
    """SHA-256 of the files of its weights, by name; Hugging Face's pages show these sums too."""


def form_of(url: str) -> str | None:
    """The form of a foreign model; None: it is none, so it may be one of ours."""
    if url.endswith(".npz"):
        return OPENAI
    return HUGGING_FACE if objects.exists(objects.join(url, hugging_face.CONFIG)) else None


def open_foreign(url: str, palette_K3: np.ndarray | None) -> ForeignModel | None:
    """Open a Hugging Face folder or OpenAI's .npz with the palette, or without one with that of the folder.

    None: there is neither. Raises IgptError when the model cannot be converted exactly.
    """
    url = objects.absolute(url)
    objects.check_reachable(url)
    _refuse_parts(url)
    form = form_of(url)
    if form is None:
        return None
    if form == OPENAI and palette_K3 is None:
        raise IgptError(f"{url}: OpenAI's variables hold no palette; give kmeans_centers.npy with --palette")
    if form == OPENAI:
        assert palette_K3 is not None
        with _local_file(url) as path:
            bundle = from_openai(path, palette_K3)
            return ForeignModel(
                bundle=bundle, form=form, licence=None, files={objects.name_of(url): sha256_of_file(path)}
            )
    with _local_folder(url) as folder:
        bundle = from_hugging_face(folder, palette_K3)
        names = hugging_face.weight_files(folder, {path.name for path in folder.iterdir()})
        files = {name: sha256_of_file(folder / name) for name in names}
        return ForeignModel(bundle=bundle, form=form, licence=licence_of(folder), files=files)


def licence_of(folder: Path) -> str | None:
    """The licence that a folder's model card names in its first lines, as Hugging Face's do; None: it names none."""
    path = folder / _CARD
    if not path.is_file() or path.stat().st_size > _MAX_CARD_BYTES:
        return None
    _, fence, rest = path.read_text(errors="replace").partition("---\n")
    head, end, _ = rest.partition("\n---")
    import yaml  # noqa: PLC0415 (not installed on every training machine)

    try:
        fields = yaml.safe_load(head) if fence and end else None
    except yaml.YAMLError:
        return None
    if not isinstance(fields, dict):
        return None
    named = fields.get("license")
    if named == "other":
        named = fields.get("license_name") or named
    text = ", ".join(str(name) for name in named) if isinstance(named, list) else str(named or "")
    return printable(text.strip())[:_LONGEST_LICENCE] or None


def _refuse_parts(url: str) -> None:
    """Raise IgptError for what looks like a model and is none: OpenAI's files as published, one file of a folder."""
    if objects.exists(f"{url}.index") or url.endswith((".index", ".meta")):
        raise IgptError(
            f"{url}: a TensorFlow checkpoint; give OpenAI's variables as one .npz file, with an array under each name"
        )
    if url.endswith((".safetensors", ".bin")) and objects.exists(url):
        raise IgptError(f"{url}: one file of a model; give the folder, with its {hugging_face.CONFIG} and its palette")


@contextmanager
def _local_file(url: str) -> Iterator[Path]:
    """A file by URL, downloaded for the block unless it is local. Raises IgptError when there is none."""
    if not objects.exists(url):
        raise IgptError(f"{url}: no such file; give an .npz file of OpenAI's variables")
    if objects.protocol(url) == "file":
        yield objects.local_path(url)
        return
    with _temporary(url) as path:
        objects.download(url, path)
        yield path


@contextmanager
def _local_folder(url: str) -> Iterator[Path]:
    """A Hugging Face folder by URL, downloaded for the block unless it is local: small files first, then weights."""
    if objects.protocol(url) == "file":
        yield objects.local_path(url)
        return
    prefix = f"{_path(url)}/"
    present = {_path(file.url).removeprefix(prefix) for file in objects.list_files(url)}
    small = {hugging_face.CONFIG, hugging_face.PROCESSOR, _CARD, *hugging_face.INDEXES} & present
    with _temporary(url) as folder:
        folder.mkdir()
        for name in sorted(small):
            objects.download(objects.join(url, name), folder / name)
        for name in hugging_face.weight_files(folder, present):
            objects.download(objects.join(url, name), folder / name)
        yield folder


def _path(url: str) -> str:
    return url.partition("://")[2].strip("/")


@contextmanager
def _temporary(url: str) -> Iterator[Path]:
    """A path in a temporary folder for what is downloaded from a URL, which errors within the block name."""
    with tempfile.TemporaryDirectory(prefix="igpt-foreign-") as temporary:
        path = Path(temporary) / objects.name_of(url)
        try:
            yield path
        except IgptError as error:
            raise IgptError(str(error).replace(str(path), url)) from None
