"""The pictures and reports in MLflow that may show images that were erased from a dataset, and their removal."""

import re
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run, ViewType
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from igpt_model.registry.client import one_line
from igpt_model.tracking.runs import CONTENT_TAG, MANIFEST_TAG, valid_name
from pipeline.store import objects

# What a model drew by itself, and curves; all other pictures have images of the dataset in them.
_WITHOUT_IMAGES = re.compile(r"(.*\.)?(samples|loss|probe|confusion|features_by_loss)\.png|samples\+step\+.*")
_PICTURE = re.compile(r".*\.(png|webp)")
_REPORT = "report.html"


@dataclass(frozen=True, kw_only=True)
class ShownFile:
    """An artifact of an MLflow run."""

    run: str
    path: str
    artifact_uri: str


def find(
    tracking_uri: str, dataset: str, digests: Collection[str], shows: Callable[[bytes, bool], bool]
) -> Iterator[ShownFile]:
    """The artifacts of all runs, deleted ones too, that may show erased images.

    Pictures do not say what they show: they are those of runs that were trained on a content of the dataset with one of
    the `digests`, and those of probes on a dataset of this name. `shows` is given a report's bytes and whether its run
    was trained on such a content, and tells whether it shows an erased image.
    """
    client = MlflowClient(tracking_uri)
    with one_line(tracking_uri):
        for run in _runs(client):
            trained_on_it = _trained_on(run.data.tags, dataset, digests)
            for path in _files(client, run):
                name = objects.name_of(path)
                if name.endswith(_REPORT):
                    is_shown = shows(_read(client, run, path), trained_on_it)
                else:
                    of_probe = name.startswith(f"{valid_name(objects.name_of(dataset))}.")
                    is_picture = _PICTURE.fullmatch(name) and not _WITHOUT_IMAGES.fullmatch(name)
                    is_shown = bool(is_picture) and (trained_on_it or of_probe)
                if is_shown:
                    yield ShownFile(run=run.info.run_id, path=path, artifact_uri=run.info.artifact_uri)


def remove(tracking_uri: str, file: ShownFile) -> None:
    """Remove an artifact."""
    with one_line(tracking_uri):
        get_artifact_repository(file.artifact_uri, tracking_uri=tracking_uri).delete_artifacts(file.path)


def _trained_on(tags: Mapping[str, str], dataset: str, digests: Collection[str]) -> bool:
    known = {tags.get(CONTENT_TAG), tags.get(MANIFEST_TAG)}
    return tags.get("igpt.dataset") == dataset and not known.isdisjoint(digests)


def _runs(client: MlflowClient) -> Iterator[Run]:
    experiments, token = [], None
    while True:
        page = client.search_experiments(view_type=ViewType.ALL, page_token=token)
        experiments += [experiment.experiment_id for experiment in page]
        if not (token := page.token):
            break
    for experiment in experiments:
        token = None
        while True:
            page = client.search_runs([experiment], run_view_type=ViewType.ALL, page_token=token)
            yield from page
            if not (token := page.token):
                break


def _files(client: MlflowClient, run: Run) -> Iterator[str]:
    for file in client.list_artifacts(run.info.run_id):
        if not file.is_dir:
            yield file.path
        elif file.path == "images":  # those of steps
            yield from (inner.path for inner in client.list_artifacts(run.info.run_id, file.path) if not inner.is_dir)


def _read(client: MlflowClient, run: Run, path: str) -> bytes:
    with tempfile.TemporaryDirectory(prefix="igpt-artifact-") as folder:
        return Path(client.download_artifacts(run.info.run_id, path, folder)).read_bytes()
