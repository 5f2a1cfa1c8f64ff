"""Foreign models by URL: their form, their origin and licence, and where errors say the fault is."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from igpt_model.convert.foreign import HUGGING_FACE, OPENAI, licence_of, open_foreign
from igpt_model.convert.hugging_face import to_hugging_face
from pipeline.errors import IgptError
from pipeline.store import objects
from tests.igpt_model.convert.test_hugging_face import SIZES, colours_of, random_bundle
from tests.igpt_model.convert.test_openai import openai_variables

CARD = "---\nlicense: apache-2.0\ntags:\n- vision\n---\n\n# A model\n"


@pytest.fixture(params=["file", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Path], str]:
    """Puts a local file or folder into a store; returns its URL."""

    def put(path: Path) -> str:
        if request.param == "file":
            return str(path)
        url = f"memory://{tmp_path.name}/{path.name}"
        for file in [path] if path.is_file() else sorted(path.iterdir()):
            objects.upload(file, url if path.is_file() else objects.join(url, file.name))
        return url

    return put


def test_a_folder_is_opened_with_its_origin_wherever_it_is(place: Callable[[Path], str], tmp_path: Path) -> None:
    source, folder = random_bundle(SIZES["two layers of 8x8"]), tmp_path / "theirs"
    to_hugging_face(source, folder)
    (folder / "README.md").write_text(CARD)
    opened = open_foreign(place(folder), None)
    assert opened is not None and (opened.form, opened.licence) == (HUGGING_FACE, "apache-2.0")
    sha256 = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert opened.files == {"model.safetensors": sha256}
    expected = source.model.state_dict()
    assert all(torch.equal(weight, expected[name]) for name, weight in opened.bundle.model.state_dict().items())


def test_variables_are_opened_with_a_palette(place: Callable[[Path], str], tmp_path: Path) -> None:
    np.savez(tmp_path / "model.npz", **openai_variables(masked=False))
    url = place(tmp_path / "model.npz")
    opened = open_foreign(url, colours_of(17))
    assert opened is not None and (opened.form, opened.licence) == (OPENAI, None)
    assert list(opened.files) == ["model.npz"]
    with pytest.raises(IgptError, match=r"hold no palette; give kmeans_centers\.npy with --palette"):
        open_foreign(url, None)


def test_errors_name_the_source_not_a_temporary_folder(place: Callable[[Path], str], tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    to_hugging_face(random_bundle(SIZES["two layers of 8x8"]), folder)
    (folder / "model.safetensors").write_bytes(b"damaged")
    url = place(folder)
    with pytest.raises(IgptError, match=f"^{url}: damaged weights"):
        open_foreign(url, None)


NO_MODEL = {
    "another folder": ("words.txt", "folder", None),
    "a checkpoint of TensorFlow": ("model.ckpt-1000000.index", "folder/model.ckpt-1000000", "a TensorFlow checkpoint"),
    "a file of it": ("model.ckpt-1000000.index", "folder/model.ckpt-1000000.index", "a TensorFlow checkpoint"),
    "one file of a folder": ("model.safetensors", "folder/model.safetensors", "one file of a model; give the folder"),
    "no such file": ("words.txt", "folder/model.npz", "no such file"),
}


@pytest.mark.parametrize("name", NO_MODEL)
def test_what_is_no_foreign_model_is_left_to_others_or_told(name: str, tmp_path: Path) -> None:
    file, given, expected = NO_MODEL[name]
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / file).write_text("x")
    if expected is None:
        assert open_foreign(str(tmp_path / given), None) is None
    else:
        with pytest.raises(IgptError, match=expected):
            open_foreign(str(tmp_path / given), colours_of(17))


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        (CARD, "apache-2.0"),
        ("---\nlicense: [mit, cc-by-4.0]\n---\n", "mit, cc-by-4.0"),
        ("---\nlicense: other\nlicense_name: ours\n---\n", "ours"),
        ("---\nlicense: other\n---\n", "other"),
        ("---\nlicense:\n---\n", None),
        ("---\ntags: [vision]\n---\n", None),
        ("---\n- license\n---\n", None),
        ("---\nlicense: [unclosed\n---\n", None),
        ("---\nlicense: mit\n", None),
        ("# A model\nlicense: mit\n", None),
        ("---\nlicense: 'a\\nb'\n---\n", r"a\nb"),
        ('---\nlicense: "a\\nb"\n---\n', r"a\nb"),
        (None, None),
    ],
)
def test_the_licence_is_what_the_card_states_and_nothing_else(
    card: str | None, licence: str | None, tmp_path: Path
) -> None:
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    assert licence_of(tmp_path) == licence
