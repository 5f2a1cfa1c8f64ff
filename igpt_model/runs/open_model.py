"""Opening a model from where it lies, on disk or in a store: a training run, one of its checkpoints, a model folder."""

import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from igpt_model.model.bundle import FILES, ModelFolder
from igpt_model.runs import checkpoint
from pipeline.errors import IgptError, first_line
from pipeline.store import objects


def load_model(url: str) -> ModelFolder:
    """The model of a model folder, of a checkpoint's folder, or of the newest good checkpoint of a run's folder.

    Raises IgptError when there is neither.
    """
    url = objects.absolute(url)
    objects.check_reachable(url)
    if checkpoint.is_checkpoint(url):
        return checkpoint.load_model(url)
    if objects.exists(objects.join(url, "model.json")):
        return load_folder(url)
    return load_run(url)


def on_device(folder: ModelFolder, device: str | None) -> ModelFolder:
    """The folder with its model on a device (none: a GPU if there is one). Raises IgptError when it cannot be used."""
    name = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return replace(folder, model=folder.model.to(name))
    except (RuntimeError, AssertionError) as error:  # which of them depends on how PyTorch was built
        raise IgptError(f"device is {name!r}: {first_line(error)}; it must be cpu, or cuda with a GPU") from None


def load_run(run: str) -> ModelFolder:
    """The model of a run's newest good checkpoint. Raises IgptError when the run has none."""
    found = checkpoint.use_newest(run, checkpoint.Checkpoint.model)
    if found is None:
        raise IgptError(
            f"{run}: no model there; give the folder of a training run, of one of its checkpoints or of a model"
        )
    return found


def load_folder(url: str) -> ModelFolder:
    """The model of a model folder. Raises IgptError when a file is missing or damaged."""
    with tempfile.TemporaryDirectory(prefix="igpt-model-") as temporary:
        for name in FILES:
            try:
                objects.download(objects.join(url, name), Path(temporary) / name)
            except FileNotFoundError:
                raise IgptError(f"{url}: not a model folder, {name} is missing") from None
        return ModelFolder.load(Path(temporary), origin=url)
