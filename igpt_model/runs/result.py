"""The result of a training run, and whether it satisfies a config."""

import json
from dataclasses import dataclass

from igpt_model.config import PretrainConfig
from igpt_model.runs.checkpoint import TrainingState, with_snapshot_digest
from pipeline.dataset import erasures
from pipeline.dataset.snapshot import Snapshot
from pipeline.errors import IgptError
from pipeline.store import objects


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """The result of a finished run; stored as {run}/result.json."""

    steps: int
    images: int
    """Images trained on, counting repetitions."""
    validation_loss: float
    """Nats per pixel on the whole validation split."""
    validation_images: int
    train_loss: float
    """Nats per pixel, the mean over the last logged steps."""
    seconds: float
    images_per_second: float
    restarts: int
    parameters: int
    snapshot_digest: str
    """Digest of the dataset snapshot it was trained on, as in its checkpoints."""
    palette_sha256: str
    skipped_steps: int = 0
    """Steps skipped because their loss or gradient was not finite."""
    skipped_spikes: int = 0
    """Steps skipped because their loss or gradient norm was far above those of the steps before."""


def read_result(run: str) -> TrainResult | None:
    """The result of a run; None when it has not finished. Raises IgptError when the file is damaged."""
    url = objects.join(run, "result.json")
    try:
        return TrainResult(**with_snapshot_digest(json.loads(objects.read_bytes(url))))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise IgptError(f"{url}: not the result of a run of this version ({error}); restore or delete it") from None


def finished(config: PretrainConfig, snapshot: Snapshot, run: str) -> TrainResult | None:
    """The result of a run that has done all steps of this config; None when it has steps left.

    Raises IgptError when the run was trained on another dataset or palette.
    """
    result = read_result(run)
    if result is None:
        return None
    check_same_data(result, snapshot, run)
    return result if result.steps >= config.optimizer.steps else None


def check_same_data(trained: TrainingState | TrainResult, snapshot: Snapshot, run: str) -> None:
    """Raise IgptError when a run was trained on another palette or snapshot than `snapshot`."""
    if trained.palette_sha256 != snapshot.palette_sha256:
        raise IgptError(
            f"{run}: it was trained with palette {trained.palette_sha256[:12]}, the dataset has "
            f"{snapshot.palette_sha256[:12]}; use the dataset it was trained on, or another name or runs folder"
        )
    if not snapshot.is_known_as(trained.snapshot_digest):
        known = trained.snapshot_digest
        why = erasures.why_gone(
            snapshot.dataset,
            lambda fields: any(known in changed["old_digests"] for changed in fields["snapshots"]),
        )
        if why is not None:
            raise IgptError(
                f"{run}: it was trained on the content {known[:12]}, which is no more: {why}; begin a run of "
                "another name"
            )
        raise IgptError(
            f"{run}: it was trained on the snapshot with digest {trained.snapshot_digest[:12]}, this one has "
            f"{snapshot.content_digest[:12]}; give that snapshot's number, or another name or runs folder"
        )
