"""The process of one model: opens it, and answers requests until the pipe is closed. Run as a program.

A registered version runs its own code. Python imports a name once, so two versions need two processes.
"""

import logging
import math
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import mlflow
import numpy as np

from flows import trust
from flows.playground import facts, training_images
from flows.playground.facts import Facts
from flows.playground.protocol import Draw, Drawn, Failed, Growing, Look, Near, Ready, Seen, Stop, Stopped
from flows.playground.training_images import TrainingImages
from flows.services import settings
from igpt_model.model.bundle import ModelBundle
from igpt_model.probing import probed
from igpt_model.probing.head import ProbeHead
from igpt_model.probing.probed import ProbedModel
from igpt_model.registry.serving import RegisteredImageGPT
from igpt_model.runs import record
from igpt_model.runs.open_model import load_model
from igpt_model.tracking import runs
from pipeline import garbage
from pipeline.errors import IgptError, unforeseen_line
from pipeline.images import palette
from pipeline.store import objects

_GROWING_SECONDS = 0.08  # between two pictures that are sent
_MOST_CLASSES = 5
_BY_PIXEL = "predict_watched"
"""A method of the versions that show pictures while they grow."""


@dataclass(frozen=True, kw_only=True)
class Opened:
    """An open model."""

    model: Any
    """A RegisteredImageGPT, of the version's code or of this program's."""
    facts: Facts
    training: Callable[[], TrainingImages | None] = lambda: None
    """Its training images with their features, read when first asked for; None: no probe has cached any."""


@dataclass(frozen=True, kw_only=True)
class _TrainedOn:
    """Where the images of a model are."""

    dataset: str
    snapshot: int


class _StoppedError(BaseException):
    """No Exception: the code of a version reports all of those as bugs."""


def open_model(reference: str, folder: Path) -> Opened:
    """Open a registered version, a folder of one, a run, a checkpoint or a model folder.

    `folder` takes the files of a registered version. Raises IgptError when there is no such model.
    """
    if reference.startswith("models:"):
        uri = settings.tracking_uri()
        runs.check_reachable(uri)
        registry = trust.registry(uri)
        version = registry.find(reference)
        name = f"{version.name}, version {version.number}"
        return _open_version(registry.download(version, folder), name, version.tags)
    url = objects.absolute(reference)
    local = objects.local_path(url) if objects.protocol(url) == "file" else None
    if local is not None and (local / "MLmodel").is_file():
        trust.trust().check(local, reference)
        return _open_version(local, objects.name_of(url), {})
    if local is not None and (local / probed.FILE).is_file():
        opened = ProbedModel.load(local, origin=reference)
    else:
        opened = ProbedModel.unprobed(load_model(url))
    model = RegisteredImageGPT(opened.bundle, opened.best_layer, opened.head)
    return _described(model, objects.name_of(url), opened, {}, _data_of_run(url))


def _open_version(folder: Path, name: str, tags: Mapping[str, str]) -> Opened:
    """A version as MLflow stores it, with the code that it brings."""
    files = next((path.parent for path in sorted(folder.rglob("model.json"))), None)
    if files is None:
        raise IgptError(f"{name}: not a model of igpt-pipeline, it holds no model.json")
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    model = mlflow.pyfunc.load_model(str(folder))._model_impl
    if (files / probed.FILE).is_file():
        opened = ProbedModel.load(files, origin=name)
    else:  # of an early version
        opened = replace(ProbedModel.unprobed(ModelBundle.load(files, origin=name)), head=ProbeHead.load(files))
    number = tags.get("igpt.snapshot", "")
    data = _TrainedOn(dataset=tags.get("igpt.dataset", ""), snapshot=int(number)) if number.isdecimal() else None
    return _described(model, name, opened, tags, data)


def _data_of_run(url: str) -> _TrainedOn | None:
    """What a run was trained on; None: there is no run."""
    try:
        data = record.read(url).config.data
    except IgptError:
        return None
    return None if data.snapshot is None else _TrainedOn(dataset=data.dataset, snapshot=data.snapshot)


def _described(model: Any, name: str, opened: ProbedModel, tags: Mapping[str, str], data: _TrainedOn | None) -> Opened:
    bundle = opened.bundle
    config = bundle.model.config
    told = Facts(
        name=name,
        config=config,
        classes=bundle.classes,
        palette_K3=palette.to_pixels(np.arange(config.colours), bundle.palette_K3),
        classifies=opened.head is not None,
        is_watched=hasattr(model, _BY_PIXEL),
        rows=facts.rows(config, tags),
        loss_nats=facts.loss_nats(tags),
    )
    if data is None or not data.dataset or config.classes is not None:  # of these no features are cached
        return Opened(model=model, facts=told)
    find = partial(training_images.cached, bundle, opened.best_layer, data.dataset, data.snapshot)
    return Opened(model=model, facts=told, training=cache(find))


def draw(opened: Opened, asked: Draw, see: Callable[[np.ndarray, np.ndarray], None]) -> Drawn:
    """Draw pictures, which `see` is shown as they grow, if the version's code does that."""
    images = None if asked.picture_RR3 is None else asked.picture_RR3[None]
    params = {**asked.params, "task": asked.task}
    if opened.facts.is_watched:
        pictures = opened.model.predict_watched(images, params, see=see, known_RR=asked.known_RR)
    else:
        if asked.known_RR is not None:
            params["rows"] = _upper_rows(asked.known_RR)
        pictures = opened.model.predict(images, params)
    return Drawn(pictures_BRR3=np.asarray(pictures).reshape(-1, *np.asarray(pictures).shape[-3:]))


def _upper_rows(known_RR: np.ndarray) -> int:
    """The number of known rows. Raises IgptError where known pixels are no upper rows."""
    rows = int(known_RR.all(1).sum())
    if not np.array_equal(known_RR, np.repeat(np.arange(len(known_RR)) < rows, len(known_RR)).reshape(known_RR.shape)):
        raise IgptError("this version was registered by an earlier igpt-pipeline, which keeps whole upper rows only")
    return rows


def look(opened: Opened, asked: Look) -> Seen:
    """What the model makes of a picture, as far as it tells."""
    told, images = opened.facts, asked.picture_RR3[None]
    params = {} if asked.label is None else {"label": asked.label}
    nats_RR = nats_per_pixel = None
    if told.scores and told.is_watched:
        nats_RR = opened.model.predict(images, {"task": "surprise", **params})[0]
        nats_per_pixel = float(nats_RR.mean())
    elif told.scores:
        nats_per_pixel = float(opened.model.predict(images, {"task": "score", **params})[0]) * math.log(2)
    classes: list[tuple[str, float]] = []
    if told.classifies:
        table = opened.model.predict(images, {"task": "classify"})
        classes = [(str(name), float(chance)) for name, chance in table.iloc[0].items()]
    likeliest = sorted(classes, key=lambda named: -named[1])[:_MOST_CLASSES]
    near: tuple[Near, ...] = ()
    if (training := opened.training()) is not None:
        features_1C = opened.model.predict(images, {"task": "features", "layer": training.layer})
        near = training.nearest_to(features_1C[0])
    return Seen(nats_RR=nats_RR, nats_per_pixel=nats_per_pixel, classes=tuple(likeliest), nearest=near)


def answer(opened: Opened, connection: Connection, asked: Draw | Look) -> Drawn | Seen | Stopped | Failed:
    """Answer a request; what goes wrong is told in a line."""
    sent = 0.0

    def see(pictures_BRR3: np.ndarray, done_B: np.ndarray) -> None:
        nonlocal sent
        while connection.poll():
            if isinstance(connection.recv(), Stop):
                raise _StoppedError
        if time.monotonic() - sent >= _GROWING_SECONDS:
            connection.send(Growing(pictures_BRR3=pictures_BRR3, done_B=done_B))
            sent = time.monotonic()

    try:
        return draw(opened, asked, see) if isinstance(asked, Draw) else look(opened, asked)
    except _StoppedError:
        return Stopped()
    except (IgptError, mlflow.MlflowException) as error:
        return Failed(line=str(error))
    except Exception as error:  # noqa: BLE001 (of any kind: the page lives on)
        return Failed(line=unforeseen_line(error))


def serve(connection: Connection, reference: str, folder: Path) -> None:
    """Open a model, and answer until the other end is closed; `folder` is for its files."""
    try:
        opened = open_model(reference, folder)
    except IgptError as error:
        connection.send(Failed(line=str(error)))
        return
    except Exception as error:  # noqa: BLE001 (of any kind: told in a line)
        connection.send(Failed(line=f"{reference}: {unforeseen_line(error)}"))
        return
    connection.send(Ready(facts=opened.facts))
    while True:
        asked = connection.recv()
        if not isinstance(asked, Stop):
            connection.send(answer(opened, connection, asked))


def main() -> None:
    """Serve a model on a socket. Arguments: the number of the socket, the model, an empty folder."""
    garbage.collect_less_often()
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the server has ended
        serve(Connection(int(sys.argv[1])), sys.argv[2], Path(sys.argv[3]))


if __name__ == "__main__":
    main()
