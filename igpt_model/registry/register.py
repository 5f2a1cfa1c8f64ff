"""Registers a model: uploads its files to the object store and its lineage to tags, once per run or set of files."""

import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version as installed
from pathlib import Path

import boto3
import mlflow
import numpy as np
from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput, LoggedModelStatus
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.store.artifact import s3_artifact_repo

from igpt_model import registered
from igpt_model.convert.hugging_face import to_hugging_face
from igpt_model.model.bundle import ModelBundle
from igpt_model.probing.head import ProbeHead
from igpt_model.registry import card, serving, signatures
from igpt_model.registry.client import CANDIDATE, CHAMPION, IDENTITY, OF_PROMOTION, Registry, Version, one_line
from igpt_model.registry.code_bundle import copy_code
from igpt_model.registry.gate import ROLLED_BACK
from igpt_model.registry.trust import SIGNED_BY, Signer
from pipeline.errors import IgptError
from pipeline.hashing import digest, sha256
from pipeline.store.credentials import StoreKey

HUGGING_FACE = "hugging_face"
BEST_LAYER = "igpt.probe_best_layer"
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
    key: StoreKey | None = None,
    signer: Signer | None = None,
) -> Version:
    """Register a model under a name as the candidate. With a `head`, a fitted probe of `best_layer`, it can classify.

    The files are written with the key, if one is given: no other step of a flow can write models. They are signed if
    there is a signer.

    A run is registered once: an existing version of the run is returned. Files are uploaded directly to the object
    store, not through the tracking server.
    """
    client = MlflowClient(tracking_uri)

    def of_run() -> int | None:
        return _first(client, name, f"run_id = '{run_id}'")

    with one_line(tracking_uri):
        number = of_run()
    if number is None:
        with tempfile.TemporaryDirectory(prefix="igpt-register-") as temporary:
            files = Path(temporary) / _FILES
            files.mkdir()
            identity = serving.write_files(files, bundle, best_layer, head)
            described = {**tags, IDENTITY: identity}
            with _uploading_with(key):
                number = _create(
                    *(bundle, files, name, tracking_uri, run_id, described, of_run),
                    hugging_face=True,
                    signer=signer,
                )
    return _finish(client, Registry(tracking_uri), name, number)


def register_files(
    bundle: ModelBundle,
    *,
    name: str,
    tracking_uri: str,
    run: Callable[[], str],
    tags: Mapping[str, str],
    best_layer: int,
    head: ProbeHead | None = None,
    hugging_face: bool = True,
    key: StoreKey | None = None,
    signer: Signer | None = None,
) -> tuple[Version, bool]:
    """Register a model that no training run of this server made. Returns the version, and whether it is new.

    The same files are registered once under a name: an existing version with them is returned. `run` is called for a
    new version and returns its MLflow run. `hugging_face`: keep the model as a Hugging Face folder with the run too.
    `key` and `signer` as in `register`.
    """
    client = MlflowClient(tracking_uri)
    with tempfile.TemporaryDirectory(prefix="igpt-register-") as temporary:
        files = Path(temporary) / _FILES
        files.mkdir()
        identity = serving.write_files(files, bundle, best_layer, head)

        def of_files() -> int | None:
            return _first(client, name, f"tag.`{IDENTITY}` = '{identity}'")

        with one_line(tracking_uri):
            number = of_files()
        new = number is None
        if number is None:
            described = {**tags, IDENTITY: identity}
            run_id = run()
            with _uploading_with(key):
                number = _create(
                    *(bundle, files, name, tracking_uri, run_id, described, of_files),
                    hugging_face=hugging_face,
                    signer=signer,
                )
    return _finish(client, Registry(tracking_uri), name, number), new


def register_probed(
    bundle: ModelBundle,
    version: Version,
    *,
    tracking_uri: str,
    dataset: str,
    best_layer: int,
    head: ProbeHead,
    key: StoreKey | None = None,
    signer: Signer | None = None,
) -> tuple[Version, bool]:
    """Register a version with a probe on a dataset as a new version of its name; the classes are those of `bundle`.

    Returns the new version, and whether there was none with the same probe. Raises IgptError for a version without an
    MLflow run.
    """
    check_has_run(version)
    own = {IDENTITY, SIGNED_BY, card.WRITTEN, ROLLED_BACK, *OF_PROMOTION}
    tags = {tag: value for tag, value in version.tags.items() if tag not in own}
    return register_files(
        bundle,
        name=version.name,
        tracking_uri=tracking_uri,
        run=lambda: version.run_id,
        tags={**tags, card.PROBED_ON: dataset, card.PROBED_VERSION: version.uri, BEST_LAYER: str(best_layer)},
        best_layer=best_layer,
        head=head,
        hugging_face=False,  # the same as the run has
        key=key,
        signer=signer,
    )


def sign_registered(registry: Registry, version: Version, signer: Signer, *, key: StoreKey | None = None) -> Version:
    """Sign a version that is registered already, as its files are, and return it; its copies are signed with it.

    Whoever calls this vouches for the files. Raises IgptError for files that differ from those that were registered,
    and for a version whose files MLflow does not keep with a model.
    """
    client = MlflowClient(registry.tracking_uri)
    model = registry.logged_model(version)
    if model is None:
        raise IgptError(f"{version.uri}: MLflow keeps no model of it, so it cannot be signed: import the model")
    with tempfile.TemporaryDirectory(prefix="igpt-sign-") as temporary, one_line(version.uri):
        folder = registry.download(version, Path(temporary) / "model", signed=False)
        signed_by, own = signer.sign(folder, model), Path(temporary) / "signature"
        own.mkdir()
        shutil.move(folder / signatures.FILE, own)
        with _uploading_with(key):
            client.log_model_artifacts(model, str(own))
    registry.tag(version, {SIGNED_BY: signed_by})
    return registry.find(version.uri)


def check_has_run(version: Version) -> None:
    """Raise IgptError for a version that was registered without an MLflow run, which holds a version's files."""
    if not version.run_id:
        raise IgptError(
            f"{version.uri} has no MLflow run, so no version of it with a probe can be made: import the model"
        )


def _create(
    bundle: ModelBundle,
    files: Path,
    name: str,
    tracking_uri: str,
    run_id: str,
    tags: Mapping[str, str],
    same: Callable[[], int | None],
    *,
    hugging_face: bool,
    signer: Signer | None,
) -> int:
    """Upload the files and create a version; returns its number, or that of one that was created at the same time."""
    client = MlflowClient(tracking_uri)
    logged = _log(bundle, files, tracking_uri, run_id, hugging_face=hugging_face, signer=signer)
    described = {card.ARCHITECTURE: card.architecture(bundle.model.config)}
    described |= {SIGNED_BY: logged.signed_by} if logged.signed_by else {}
    with one_line(tracking_uri):
        # As late as this, so that an upload that fails leaves no name without versions.
        _ensure_registered_model(client, name)
        created = client.create_model_version(
            name,
            f"models:/{logged.model_id}",
            run_id=run_id,
            tags={**described, **_lineage(client, run_id), **tags},
            model_id=logged.model_id,
        )
        first = same()
        assert first is not None
        if first != int(created.version):  # another process registered the same first
            client.delete_model_version(name, created.version)
    return first


def _finish(client: MlflowClient, registry: Registry, name: str, number: int) -> Version:
    """Describe a version and make it the candidate; a rerun does what an interrupted one left out."""
    write_card(registry, registry.find(f"{name}/{number}"))
    _make_candidate(client, registry, name, number)
    return registry.find(f"{name}/{number}")


def write_card(registry: Registry, version: Version) -> None:
    """Bring the description of a version up to its tags, unless a person wrote it."""
    if not card.is_ours(version.description, version.tags):
        return
    text = card.text(version.name, version.number, version.tags)
    if text != version.description:
        registry.tag(version, {card.WRITTEN: sha256(text.encode())})
        registry.describe(version, text)


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


def _first(client: MlflowClient, name: str, condition: str) -> int | None:
    """The number of the oldest version of a model that satisfies a condition; None: there is none."""
    versions = client.search_model_versions(f"name = '{name}' and {condition}")
    return min((int(version.version) for version in versions), default=None)


@dataclass(frozen=True, kw_only=True)
class _Logged:
    """An uploaded model."""

    model_id: str
    signed_by: str
    """Id of the key that signed it; empty: none did."""


def _log(
    bundle: ModelBundle, files: Path, tracking_uri: str, run_id: str, *, hugging_face: bool, signer: Signer | None
) -> _Logged:
    """Upload a model as a pyfunc model of its run, and as a Hugging Face folder if it can be converted.

    In the steps of `mlflow.pyfunc.log_model`, which uploads at once: all files are signed as they are uploaded.
    """
    mlflow.set_tracking_uri(tracking_uri)
    logging.getLogger("mlflow").setLevel(logging.ERROR)  # it logs every step
    config = bundle.model.config
    example = bundle.pictures(np.zeros((1, config.positions), np.int64))
    plain = config.objective == "autoregressive" and config.classes is None and config.low_resolution is None
    with tempfile.TemporaryDirectory(prefix="igpt-register-") as temporary, one_line(tracking_uri):
        hf_folder = Path(temporary) / HUGGING_FACE
        with mlflow.start_run(run_id=run_id):
            if plain and hugging_face:
                to_hugging_face(bundle, hf_folder)
                mlflow.log_artifacts(str(hf_folder), HUGGING_FACE)
        client, folder = MlflowClient(tracking_uri), Path(temporary) / "model"
        run = client.get_run(run_id)
        code = copy_code(registered.__name__, Path(temporary))
        logged = mlflow.initialize_logged_model(name="model", source_run_id=run_id, params=dict(run.data.params))
        described = Model(
            artifact_path=logged.artifact_location,
            model_uuid=logged.model_id,
            run_id=run_id,
            model_id=logged.model_id,
        )
        try:
            mlflow.pyfunc.save_model(
                path=str(folder),
                mlflow_model=described,
                loader_module=f"{code.name}.{registered.__name__}",
                data_path=str(files),
                code_paths=[str(code)],
                pip_requirements=[f"{package}=={installed(package).split('+')[0]}" for package in _REQUIREMENTS],
                signature=serving.signature(),
                input_example=example,
            )
            signed_by = "" if signer is None else signer.sign(folder, logged.model_id)
            client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
            client.log_model_artifacts(logged.model_id, str(folder))
        except BaseException:
            mlflow.finalize_logged_model(logged.model_id, LoggedModelStatus.FAILED)
            raise
        mlflow.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)
        return _Logged(model_id=logged.model_id, signed_by=signed_by)


@contextmanager
def _uploading_with(key: StoreKey | None) -> Iterator[None]:
    """Let MLflow use a key within the block, if there is one; this project's own requests keep theirs."""
    if key is None:
        yield
        return
    boto3.setup_default_session(aws_access_key_id=key.access_key, aws_secret_access_key=key.secret_key)
    s3_artifact_repo._cached_get_s3_client.cache_clear()
    try:
        yield
    finally:
        boto3.DEFAULT_SESSION = None
        s3_artifact_repo._cached_get_s3_client.cache_clear()


def _ensure_registered_model(client: MlflowClient, name: str) -> None:
    try:
        client.create_registered_model(
            name,
            description=f"Image GPTs. `{CANDIDATE}` is the newest version, `{CHAMPION}` the one that passed the gate.",
        )
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
