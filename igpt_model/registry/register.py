"""Registers a model: uploads its files to the object store and its lineage to tags, once per run."""

import logging
import tempfile
from collections.abc import Mapping
from importlib.metadata import version as installed
from pathlib import Path

import mlflow
import numpy as np
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from igpt_model import registered
from igpt_model.convert.hugging_face import to_hugging_face
from igpt_model.model.bundle import ModelBundle
from igpt_model.probing.head import ProbeHead
from igpt_model.registry import serving
from igpt_model.registry.client import CANDIDATE, IDENTITY, Registry, Version, one_line
from igpt_model.registry.code_bundle import copy_code
from pipeline.hashing import digest

HUGGING_FACE = "hugging_face"
_FILES = "image_gpt"
# mlflow-skinny is MLflow without server and database; its pyfunc flavor needs pandas; boto3 downloads from S3.
_REQUIREMENTS = ("mlflow-skinny", "torch", "numpy", "pandas", "pillow", "safetensors", "boto3")


def register(
    bundle: ModelBundle,
    *,
    name: str,
    tracking_uri: str,
    run_id: str,
    tags: Mapping[str, str],
    best_layer: int,
    head: ProbeHead | None = None,
) -> Version:
    """Register a model under a name as the candidate. With a `head`, a fitted probe of `best_layer`, it can classify.

    A run is registered once: an existing version of the run is returned. Files are uploaded directly to the object
    store, not through the tracking server.
    """
    client = MlflowClient(tracking_uri)
    registry = Registry(tracking_uri)
    with one_line(tracking_uri):
        _ensure_registered_model(client, name)
    number = _of_run(client, name, run_id)
    if number is None:
        logged, identity = _log(bundle, tracking_uri, run_id, best_layer, head)
        with one_line(tracking_uri):
            created = client.create_model_version(
                name,
                logged.model_uri,
                run_id=run_id,
                tags={**_lineage(client, run_id), **tags, IDENTITY: identity},
                model_id=logged.model_id,
            )
            number = _of_run(client, name, run_id)
            if number != int(created.version):  # another process registered the same run first
                client.delete_model_version(name, created.version)
    assert number is not None
    _make_candidate(client, registry, name, number)
    return registry.find(f"{name}/{number}")


def _make_candidate(client: MlflowClient, registry: Registry, name: str, number: int) -> None:
    """Move the candidate alias to a version, or to a newer one that is being registered concurrently."""
    newest = number
    while registry.aliases_of(name).get(CANDIDATE, 0) < newest:
        with one_line(registry.tracking_uri):
            client.set_registered_model_alias(name, CANDIDATE, str(newest))
        # Versions come newest first, so this keeps the oldest version of each run: duplicates are about to be deleted.
        oldest_of_run = {version.run_id: version.number for version in registry.versions(name)}
        newest = max(number, *oldest_of_run.values())


def _lineage(client: MlflowClient, run_id: str) -> dict[str, str]:
    """Tags for the origin of a model: the code, the config, the flow run and the parent model of its run."""
    run = client.get_run(run_id)
    names = ("igpt.git_commit", "igpt.prefect_run", "igpt.prefect_url", "igpt.parent_model")
    tags = {name: run.data.tags[name] for name in names if run.data.tags.get(name)}
    return {**tags, "igpt.config_digest": digest(dict(run.data.params)), "igpt.mlflow_run": run_id}


def _of_run(client: MlflowClient, name: str, run_id: str) -> int | None:
    versions = client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
    return min((int(version.version) for version in versions), default=None)


def _log(
    bundle: ModelBundle, tracking_uri: str, run_id: str, best_layer: int, head: ProbeHead | None
) -> tuple[mlflow.models.model.ModelInfo, str]:
    """Upload a model as a pyfunc model of its run, and as a Hugging Face folder if it can be converted."""
    mlflow.set_tracking_uri(tracking_uri)
    logging.getLogger("mlflow").setLevel(logging.ERROR)  # it logs every step
    config = bundle.model.config
    example = bundle.pictures(np.zeros((1, config.positions), np.int64))
    with tempfile.TemporaryDirectory(prefix="igpt-register-") as temporary, one_line(tracking_uri):
        files, hf_folder = Path(temporary) / _FILES, Path(temporary) / HUGGING_FACE
        files.mkdir()
        identity = serving.write_files(files, bundle, best_layer, head)
        with mlflow.start_run(run_id=run_id):
            if config.objective == "autoregressive" and config.classes is None and config.low_resolution is None:
                to_hugging_face(bundle, hf_folder)
                mlflow.log_artifacts(str(hf_folder), HUGGING_FACE)
            logged = mlflow.pyfunc.log_model(
                name="model",
                loader_module=registered.__name__,
                data_path=str(files),
                code_paths=[str(path) for path in copy_code(registered.__name__, Path(temporary) / "code")],
                pip_requirements=[f"{package}=={installed(package).split('+')[0]}" for package in _REQUIREMENTS],
                signature=serving.signature(),
                input_example=example,
            )
    return logged, identity


def _ensure_registered_model(client: MlflowClient, name: str) -> None:
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
