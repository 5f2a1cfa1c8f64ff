"""Opens a model by reference: a run, one of its checkpoints, a model folder, or a registered version."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path

import torch

from igpt_model.model.bundle import FILES, ModelBundle
from igpt_model.runs import attempts, checkpoint
from pipeline.errors import IgptError, first_line
from pipeline.store import objects

# Models opened within `opened_once`, by reference.
_open: ContextVar[dict[str, ModelBundle] | None] = ContextVar("open_models", default=None)


@contextmanager
def opened_once() -> Iterator[None]:
    """Within the block each model is downloaded once: a refresh samples from, probes and registers the same model."""
    token = _open.set({})
    try:
        yield
    finally:
        _open.reset(token)


def open_model(reference: str, from_registry: Callable[[str], ModelBundle]) -> ModelBundle:
    """Open the model of a run (its newest undamaged checkpoint), a checkpoint, a model folder, or models:/NAME@ALIAS.

    A registered run whose checkpoints were removed opens as its version. `from_registry` opens a registry URI. Raises
    IgptError when there is no model or it is damaged.
    """
    registered = reference.startswith("models:")
    url = reference if registered else objects.absolute(reference)
    open_models = _open.get()
    if open_models is not None and url in open_models:
        return open_models[url]
    bundle = from_registry(url) if registered else _load(url, from_registry)
    if open_models is not None:
        open_models[url] = bundle
    return bundle


def _load(url: str, from_registry: Callable[[str], ModelBundle]) -> ModelBundle:
    """Open a model by URL. The model of a run without checkpoints is the version that it was registered as.

    Old checkpoints of finished runs are removed (old_checkpoints.py), perhaps while this process reads one.
    """
    try:
        return load_model(url)
    except IgptError:
        version = attempts.registration(url)
        if not version or checkpoint.marked_steps(url):
            raise
    return from_registry(version)


def load_model(url: str) -> ModelBundle:
    """Open the model of a run (its newest undamaged checkpoint), a checkpoint or a model folder, by URL or path.

    Raises IgptError when there is no model or it is damaged.
    """
    url = objects.absolute(url)
    objects.check_reachable(url)
    if checkpoint.is_checkpoint(url):
        return checkpoint.load_model(url)
    if objects.exists(objects.join(url, "model.json")):
        return load_folder(url)
    bundle = checkpoint.use_newest(url, checkpoint.Checkpoint.model)
    if bundle is None:
        raise IgptError(
            f"{url}: no model there; give the folder of a training run, of one of its checkpoints or of a model, or a "
            "registered version as in models:/igpt@champion"
        )
    return bundle


def on_device(bundle: ModelBundle, device: str | None) -> ModelBundle:
    """Move the model to a device (none: a GPU if there is one). Raises IgptError when the device cannot be used."""
    name = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return replace(bundle, model=bundle.model.to(name))
    except (RuntimeError, AssertionError) as error:  # the type depends on how PyTorch was built
        raise IgptError(f"device is {name!r}: {first_line(error)}; it must be cpu, or cuda with a GPU") from None


def load_folder(url: str) -> ModelBundle:
    """Open a model folder. Raises IgptError when a file is missing or damaged."""
    with tempfile.TemporaryDirectory(prefix="igpt-model-") as temporary:
        for name in FILES:
            try:
                objects.download(objects.join(url, name), Path(temporary) / name)
            except FileNotFoundError:
                raise IgptError(f"{url}: not a model folder, {name} is missing") from None
        return ModelBundle.load(Path(temporary), origin=url)
