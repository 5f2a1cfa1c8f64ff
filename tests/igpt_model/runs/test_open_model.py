"""Every kind of reference opens the same model, and a refresh downloads it once."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from flows.probe import _load
from igpt_model.model.bundle import ModelBundle
from igpt_model.runs import checkpoint
from igpt_model.runs.open_model import load_model, open_model, opened_once
from igpt_model.training.loop import train
from igpt_model.worker import Worker
from pipeline.errors import IgptError
from pipeline.store import objects
from tests.igpt_model.training.test_loop import Recorder, digits_snapshot, short_training


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a finished training of thirty steps."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("digits")
    data = digits_snapshot(root)
    train(short_training(data, root), data, str(root / "run"), Worker(), Recorder())
    return str(root / "run")


@pytest.fixture
def folder(run: str, tmp_path: Path) -> str:
    """The same model as a model folder."""
    (tmp_path / "folder").mkdir()
    load_model(run).save(tmp_path / "folder")
    return str(tmp_path / "folder")


def no_registry(reference: str) -> ModelBundle:
    raise AssertionError(f"{reference} is not in a registry")


def same_weights(one: ModelBundle, other: ModelBundle) -> bool:
    weights, other_weights = one.model.state_dict(), other.model.state_dict()
    return all(torch.equal(weights[name], other_weights[name]) for name in weights)


REFERENCES: dict[str, Callable[[str, str], str]] = {
    "a run": lambda run, folder: run,
    "a run with a slash behind it": lambda run, folder: f"{run}/",
    "a checkpoint": lambda run, folder: checkpoint.folder_of(run, 30),
    "a model folder": lambda run, folder: folder,
}


@pytest.mark.parametrize("kind", REFERENCES)
def test_every_reference_opens_the_same_model(kind: str, run: str, folder: str) -> None:
    reference = REFERENCES[kind](run, folder)
    expected = load_model(run)
    assert same_weights(open_model(reference, no_registry), expected)
    bundle, version = _load(reference, "http://127.0.0.1:1")  # what `igpt probe model=...` opens
    assert version is None and same_weights(bundle, expected)


def test_a_registry_uri_goes_to_the_registry(run: str) -> None:
    opened: list[str] = []

    def from_registry(reference: str) -> ModelBundle:
        opened.append(reference)
        return load_model(run)

    assert same_weights(open_model("models:/digits@champion", from_registry), load_model(run))
    assert opened == ["models:/digits@champion"]


def test_a_registered_run_whose_checkpoints_were_removed_opens_as_its_version(run: str, tmp_path: Path) -> None:
    model, cleaned = load_model(run), str(tmp_path / "cleaned")
    shutil.copytree(run, cleaned)
    objects.write_bytes(f"{cleaned}/registration.json", b'{"model": "models:/digits/3"}')
    assert same_weights(open_model(cleaned, no_registry), model), "its own checkpoint first"
    shutil.rmtree(f"{cleaned}/checkpoints")
    opened: list[str] = []
    open_model(cleaned, lambda reference: (opened.append(reference), model)[1])
    assert opened == ["models:/digits/3"]
    objects.write_bytes(f"{cleaned}/registration.json", b'{"model": ""}')
    with pytest.raises(IgptError, match="no model there"):
        open_model(cleaned, no_registry)


def test_a_folder_without_a_model_is_refused_with_advice(tmp_path: Path) -> None:
    with pytest.raises(IgptError, match="no model there; give the folder of a training run, of one of its"):
        open_model(str(tmp_path), no_registry)


def test_a_refresh_downloads_a_model_once(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    downloads: list[str] = []
    download = objects.download
    monkeypatch.setattr(objects, "download", lambda url, local: (downloads.append(url), download(url, local))[1])
    with opened_once():
        models = [open_model(run, no_registry) for _ in range(3)]
    once = len(downloads)
    assert once == len(set(downloads)) > 0
    assert all(model is models[0] for model in models)
    open_model(run, no_registry)
    assert len(downloads) == 2 * once, "outside the block models are not cached"
