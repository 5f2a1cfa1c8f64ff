"""MLflow runs: one per training run, reused after a restart, with config, lineage, metrics and images."""

import http
import http.client
import json
import re
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from igpt_model.config import PretrainConfig
from pipeline.dataset.snapshot import Snapshot
from pipeline.errors import IgptError, NoAnswerError, first_line
from pipeline.hashing import digest
from pipeline.store import objects

_RUN_TAG = "igpt.run"
BEAT_TAG = "igpt.last_sign_of_life"
"""Tag: time of the last heartbeat of the run, in seconds since 1970."""
_ABANDONED_SECONDS = 300.0
ABANDONED_TAG = "igpt.abandoned"
"""Tag: why the training run was given up; empty once it is taken up again."""
CONTENT_TAG = "igpt.content_digest"
"""Tag: digest of the content of the dataset snapshot; what compares data goes by it."""
PROGRESS_TAG = "igpt.progress"
"""Tag: how far the training is, in words; renewed with the heartbeat."""
_NOTE_TAG = "mlflow.note.content"  # which MLflow's page shows as the description
MANIFEST_TAG = "igpt.manifest_digest"
"""Tag: digest of the manifest of the dataset snapshot, which says when the content was published."""
# Else MLflow guesses the kind, and shows the pages for language models.
_KIND = {"mlflow.experimentKind": "custom_model_development"}
_LONGEST_NAME = 150  # MLflow accepts 250 characters, file systems 255 bytes; more text follows
REASON_LENGTH = 160  # maximum characters of a quoted error; MLflow's client repeats the address three times


def check_reachable(tracking_uri: str) -> None:
    """Raise NoAnswerError when no MLflow server answers at a URI, within seconds; IgptError for no URI of one."""
    if not tracking_uri.startswith(("http://", "https://")):
        raise IgptError(f"MLFLOW_TRACKING_URI is {tracking_uri!r}: give the http:// address of an MLflow server")
    try:
        with urllib.request.urlopen(f"{tracking_uri.rstrip('/')}/health", timeout=5) as answer:
            answer.read()
    except (http.client.HTTPException, OSError, ValueError) as error:
        answered = isinstance(error, urllib.error.HTTPError) and error.code < http.HTTPStatus.INTERNAL_SERVER_ERROR
        raise (IgptError if answered or isinstance(error, ValueError) else NoAnswerError)(
            f"MLflow at {tracking_uri} does not answer ({getattr(error, 'reason', error)}); "
            "start it (`igpt up`) or correct MLFLOW_TRACKING_URI"
        ) from None


def valid_name(text: str) -> str:
    """A text as part of the name of a metric, a tag or an artifact: what MLflow refuses in names becomes `_`."""
    return re.sub(r"^\.|[^\w. :-]", "_", text)[:_LONGEST_NAME]


class RunLogger:
    """Writes to one MLflow run."""

    def __init__(self, tracking_uri: str, run_id: str) -> None:
        self._client = MlflowClient(tracking_uri)
        self.tracking_uri, self.run_id = tracking_uri, run_id

    @property
    def url(self) -> str:
        """The run's page."""
        experiment = self._client.get_run(self.run_id).info.experiment_id
        return f"{self.tracking_uri.rstrip('/')}/#/experiments/{experiment}/runs/{self.run_id}"

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Log values at a step. Raises IgptError when the server does not accept them after the client's retries."""
        now = int(time.time() * 1000)
        try:
            self.points([Metric(name, float(value), now, step) for name, value in values.items()])
        except MlflowException as error:
            reason = first_line(error, REASON_LENGTH)
            raise IgptError(
                f"MLflow at {self.tracking_uri} does not accept the metrics of step {step} ({reason}); "
                "when it answers again, run the same command again"
            ) from None

    def points(self, points: Sequence[Metric]) -> None:
        """Log metrics that have steps and times. Raises MlflowException."""
        self._client.log_batch(self.run_id, metrics=points)

    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags."""
        self._client.log_batch(self.run_id, tags=[RunTag(k, v) for k, v in values.items()])

    def picture(self, image: np.ndarray, name: str) -> None:
        """Store an image, uint8 [H, W, 3], as an artifact; `name` ends in .png."""
        self._client.log_image(self.run_id, image, artifact_file=name)

    def picture_at(self, step: int, image: np.ndarray, name: str) -> None:
        """Log an image of a step, uint8 [H, W, 3], for MLflow's image view by step; only once per step."""
        logged = self._client.list_artifacts(self.run_id, "images")
        if not any(file.path.startswith(f"images/{name}+step+{step}+") for file in logged):
            self._client.log_image(self.run_id, image, key=name, step=step)

    def pictures_by_step(self, name: str, most: int) -> dict[int, bytes]:
        """At most so many of the images that `picture_at` logged, by step, evenly spaced, as PNG files."""
        paths: dict[int, str] = {}
        for file in self._client.list_artifacts(self.run_id, "images"):
            if logged := re.fullmatch(rf"images/{re.escape(name)}\+step\+(\d+)\+.*\.png", file.path):
                paths[int(logged[1])] = file.path
        steps = sorted(paths)
        chosen = [steps[row] for row in np.linspace(0, len(steps) - 1, min(len(steps), most)).round().astype(int)]
        with tempfile.TemporaryDirectory(prefix="igpt-artifact-") as folder:
            return {
                step: Path(self._client.download_artifacts(self.run_id, paths[step], folder)).read_bytes()
                for step in chosen
            }

    def file(self, data: bytes, name: str) -> None:
        """Store a file as an artifact."""
        with tempfile.TemporaryDirectory(prefix="igpt-artifact-") as folder:
            path = Path(folder) / name
            path.write_bytes(data)
            self._client.log_artifact(self.run_id, str(path))

    def end(self, status: str) -> None:
        """Close the run: FINISHED, FAILED or KILLED."""
        self._client.set_terminated(self.run_id, status)

    @contextmanager
    def closing(self) -> Iterator[None]:
        """Close the run when the block ends: finished, failed, or killed by Ctrl-C or a cancellation.

        When the server does not answer, a failed run stays open, and a later run closes it as abandoned. Raises
        IgptError when a finished run cannot be closed.
        """
        status = "KILLED"
        try:
            yield
            status = "FINISHED"
        except Exception:
            status = "FAILED"
            raise
        finally:
            try:
                self.end(status)
            except MlflowException as error:
                if status == "FINISHED":
                    reason = first_line(error, REASON_LENGTH)
                    raise IgptError(
                        f"MLflow at {self.tracking_uri} does not close the run {self.run_id} ({reason}); "
                        "when it answers again, run the same command again"
                    ) from None

    def metric_history(self, name: str) -> list[tuple[int, float]]:
        """The (step, value) pairs of a metric, by step."""
        history = self._client.get_metric_history(self.run_id, name)
        return sorted((metric.step, metric.value) for metric in history)


def open_run(
    tracking_uri: str,
    config: PretrainConfig,
    snapshot: Snapshot,
    run: str,
    tags: Mapping[str, str],
) -> RunLogger:
    """Find the MLflow run of the training run in folder `run`, or create it with its config and dataset."""
    client = MlflowClient(tracking_uri)
    try:
        experiment_id = _experiment(client, config.tracking.experiment)
        existing = client.search_runs([experiment_id], f"tags.`{_RUN_TAG}` = '{run}'", max_results=1)
    except MlflowException as error:
        raise IgptError(
            f"MLflow at {tracking_uri}: experiment {config.tracking.experiment!r}: {error.message}"
        ) from None
    if existing:
        logger = RunLogger(tracking_uri, existing[0].info.run_id)
        # The heartbeat first: a running run with an old heartbeat would be closed as abandoned.
        taken_up = {ABANDONED_TAG: ""} if ABANDONED_TAG in existing[0].data.tags else {}
        logger.tags({**tags, **taken_up, BEAT_TAG: f"{time.time():.0f}"})
        client.update_run(logger.run_id, status="RUNNING")
        return logger
    created = client.create_run(experiment_id, run_name=objects.name_of(run), tags={_RUN_TAG: run, **tags})
    logger = RunLogger(tracking_uri, created.info.run_id)
    model = config.model_for(snapshot)
    # Fields are logged with the preset's numbers and without their sections, so that runs can be compared with older
    # ones. `model.` is the resulting model, which also depends on the dataset.
    params = {
        **config.resolved().flat(),
        **{f"model.{name}": value for name, value in asdict(model).items()},
        "parameters": model.parameters,
    }
    client.log_batch(
        logger.run_id,
        params=[Param(key, str(value)[:500]) for key, value in params.items()],
    )
    note = (
        f"Trains {config.model.preset} ({model.parameters:,} parameters) for {config.optimizer.steps:,} steps on "
        f"snapshot {snapshot.number} of `{snapshot.dataset}`. The tag `{PROGRESS_TAG}` says how far it is, "
        f"`igpt.prefect_url` where the flow run that trains it is shown. Checkpoints and results are in `{run}`."
    )
    logger.tags({**lineage_tags(snapshot), _NOTE_TAG: note, PROGRESS_TAG: "waits for its workers"})
    source = json.dumps({"uri": f"{snapshot.dataset}/snapshots/{snapshot.number:06d}.json"})
    dataset = Dataset(
        name=objects.name_of(snapshot.dataset),
        digest=snapshot.content_digest[:12],
        source_type="uri",
        source=source,
        profile=json.dumps({split: snapshot.samples(split) for split in ("train", "validation", "test")}),
    )
    context = [InputTag("mlflow.data.context", "training")]
    client.log_inputs(logger.run_id, datasets=[DatasetInput(dataset, tags=context)])
    return logger


def create_run(
    tracking_uri: str, experiment: str, name: str, params: Mapping[str, object], tags: Mapping[str, str]
) -> str:
    """Create a run of something other than a training in an experiment, which is made if need be; returns its id."""
    client = MlflowClient(tracking_uri)
    try:
        run = client.create_run(_experiment(client, experiment), run_name=name, tags=dict(tags))
        client.log_batch(run.info.run_id, params=[Param(key, str(value)) for key, value in params.items()])
    except MlflowException as error:
        raise IgptError(
            f"MLflow at {tracking_uri}: experiment {experiment!r}: {first_line(error, REASON_LENGTH)}"
        ) from None
    return run.info.run_id


def _experiment(client: MlflowClient, name: str) -> str:
    """The id of an experiment, created if need be. Raises MlflowException."""
    existing = client.get_experiment_by_name(name)
    if existing is None:
        try:
            return client.create_experiment(name, tags=_KIND)
        except MlflowException:  # made by another process at the same time
            existing = client.get_experiment_by_name(name)
            if existing is None:
                raise
    if _KIND.keys() - existing.tags.keys():
        for tag, value in _KIND.items():
            client.set_experiment_tag(existing.experiment_id, tag, value)
    return existing.experiment_id


def close_abandoned(tracking_uri: str, experiment: str) -> list[str]:
    """Close training runs whose process died, as KILLED at their last heartbeat. Returns their ids.

    A run is abandoned when its status is running and its last heartbeat is older than five minutes.
    """
    client = MlflowClient(tracking_uri)
    existing = client.get_experiment_by_name(experiment)
    if existing is None:
        return []
    running = client.search_runs([existing.experiment_id], f"attributes.status = 'RUNNING' and tags.`{BEAT_TAG}` != ''")
    closed = []
    for run in running:
        last = float(run.data.tags[BEAT_TAG])
        if time.time() - last > _ABANDONED_SECONDS:
            client.set_terminated(run.info.run_id, "KILLED", end_time=int(last * 1000))
            closed.append(run.info.run_id)
    return closed


def mark_abandoned(tracking_uri: str, run_id: str, reason: str) -> bool:
    """Tag an MLflow run with why its training was given up, and close it as KILLED; False if the server does not."""
    client = MlflowClient(tracking_uri)
    try:
        client.set_tag(run_id, ABANDONED_TAG, reason)
        if client.get_run(run_id).info.status == "RUNNING":
            client.set_terminated(run_id, "KILLED")
    except MlflowException:
        return False
    return True


def trained_on(tags: Mapping[str, str], snapshot: Snapshot) -> bool:
    """Whether a run or a version with these tags was trained on a snapshot's content; older ones have one digest."""
    return snapshot.is_known_as(tags.get(CONTENT_TAG, tags.get(MANIFEST_TAG)))


def lineage_tags(snapshot: Snapshot) -> dict[str, str]:
    """Tags for the dataset of a run or a model."""
    return {
        "igpt.dataset": snapshot.dataset,
        "igpt.snapshot": str(snapshot.number),
        CONTENT_TAG: snapshot.content_digest,
        MANIFEST_TAG: snapshot.manifest_digest,
        "igpt.palette_sha256": snapshot.palette_sha256,
    }


def splits_digest(snapshot: Snapshot) -> str:
    """The identity of the held-out images of a snapshot: with the same one, versions were measured on the same."""
    return digest(sorted(shard.sha256 for shard in snapshot.shards if shard.split != "train"))


def probe_tag(snapshot: Snapshot, name: str) -> str:
    """The tag of a version for a result of a probe on a dataset, or for its `snapshot` (number and content digest)."""
    return f"igpt.probe.{valid_name(objects.name_of(snapshot.dataset))}.{name}"
