"""Checkpoints of a training run: written, verified, then marked; read without unpickling anything.

{run}/checkpoints/{step:08d}/   weights.safetensors, model.json, palette.npy (a model folder), optimizer.safetensors,
    and where the model is an average of the weights, trained.safetensors, the weights that training goes on with
{run}/checkpoints/{step:08d}.json   the mark: the training state, and size and checksum of each file; written last
"""

import hashlib
import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from igpt_model.model_folder import ModelFolder
from pipeline import storage
from pipeline.errors import IgptError
from pipeline.lease import Fence


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """Where a run stands, beside its weights and optimizer."""

    step: int
    """Optimizer steps done; the learning rate is a function of it."""
    cursor: int
    """Samples consumed: the position in the endless order at which the next global batch begins."""
    restarts: int
    """How often the run has continued from a checkpoint."""
    seconds: float
    """Time spent training so far, restarts included."""
    mlflow_run: str | None
    snapshot: int
    manifest_digest: str
    palette_sha256: str
    skipped: int = 0
    """Steps that were left out because their loss or gradient was not finite."""
    skipped_in_a_row: int = 0
    """How many of them were the last steps."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A verified checkpoint in a local folder."""

    state: TrainingState
    folder: Path

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer, average: nn.Module | None = None) -> None:
        """Load the weights, the optimizer's moments and the random state, and the average of the weights.

        Raises RuntimeError when they do not fit.
        """
        saved, trained = self.folder / "weights.safetensors", self.folder / "trained.safetensors"
        if trained.exists() != (average is not None):
            raise RuntimeError("one of the two keeps an average of the weights (ema_decay), the other does not")
        if average is not None:
            safetensors.torch.load_model(average, saved)
        safetensors.torch.load_model(model, saved if average is None else trained)
        tensors = safetensors.torch.load_file(self.folder / "optimizer.safetensors")
        torch.set_rng_state(tensors.pop("rng"))
        states: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            number, key = name.split(".", 1)
            states.setdefault(int(number), {})[key] = tensor
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": states, "param_groups": groups})


def save(
    run: str,
    state: TrainingState,
    folder: ModelFolder,
    optimizer: torch.optim.Optimizer,
    trained: nn.Module | None = None,
    *,
    keep: int,
    fence: Fence | None = None,
) -> None:
    """Write a checkpoint, verify its size in the store, mark it, then prune all but the newest `keep` marked ones.

    `trained` is the model that training goes on with, where the folder has an average of its weights. Raises
    LeaseLostError, and marks and prunes nothing, where the `fence` lets nothing pass any more.
    """
    url = storage.join(run, "checkpoints", f"{state.step:08d}")
    with tempfile.TemporaryDirectory(prefix="igpt-checkpoint-") as temporary:
        local = Path(temporary)
        folder.save(local)
        if trained is not None:
            safetensors.torch.save_model(trained, str(local / "trained.safetensors"))
        tensors = {
            f"{number}.{key}": value.contiguous()
            for number, values in optimizer.state_dict()["state"].items()
            for key, value in values.items()
        }
        safetensors.torch.save_file({**tensors, "rng": torch.get_rng_state()}, local / "optimizer.safetensors")
        files = {}
        for path in sorted(local.iterdir()):
            storage.upload(path, storage.join(url, path.name))
            files[path.name] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
            arrived = storage.size(storage.join(url, path.name))
            if arrived != path.stat().st_size:
                raise OSError(f"{url}/{path.name}: {arrived} bytes arrived of {path.stat().st_size}")
    mark = {"state": asdict(state), "files": files}
    if fence is not None:
        fence.check()
    storage.write_bytes(f"{url}.json", json.dumps(mark, indent=1, sort_keys=True).encode())
    for step in marked_steps(run)[:-keep]:
        old = storage.join(run, "checkpoints", f"{step:08d}")
        storage.delete_tree(f"{old}.json")  # the mark first: half a checkpoint is never a marked one
        storage.delete_tree(old)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def marked_steps(run: str) -> list[int]:
    """The steps of the run's marked checkpoints, ascending."""
    names = (file.url.rsplit("/", 1)[-1] for file in storage.list_files(storage.join(run, "checkpoints")))
    return sorted(int(name[:8]) for name in names if len(name) == 13 and name[:8].isdigit() and name.endswith(".json"))


def load_newest(run: str, local: Path, *, warn: Callable[[str], None] = lambda line: None) -> Checkpoint | None:
    """Fetch the newest checkpoint whose every file has its checksum into a local folder; None when there is none.

    A damaged one is passed over for the one before, and `warn` hears which. Raises IgptError when all are damaged.
    """
    steps = marked_steps(run)
    for step in reversed(steps):
        url = storage.join(run, "checkpoints", f"{step:08d}")
        folder = local / f"{step:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        try:
            mark = json.loads(storage.read_bytes(f"{url}.json"))
            for name, recorded in mark["files"].items():
                storage.download(storage.join(url, name), folder / name)
                if _sha256(folder / name) != recorded["sha256"]:
                    raise ValueError(f"{name} differs from its checksum")
            return Checkpoint(state=TrainingState(**mark["state"]), folder=folder)
        except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
            warn(f"checkpoint of step {step} is damaged ({error}); trying the one before")
    if steps:
        raise IgptError(f"{run}: every checkpoint is damaged; remove {run}/checkpoints to train from the start")
    return None
