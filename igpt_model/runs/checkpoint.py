"""Checkpoints of a training run: written by all ranks, verified, then marked complete; read without unpickling.

{run}/checkpoints/{step:08d}/   weights-{rank}.safetensors (the model, or the average of its weights), model.json,
    palette.npy and optimizer-{rank}.safetensors; tensor_files.py knows how tensors lie in the files of the ranks
{run}/checkpoints/{step:08d}/index.json   the training state, the location of each tensor, and size and checksum of
    each file; written last, so a checkpoint without it is incomplete and ignored

Checkpoints can be read on any number of ranks, and by plain Python; saver.py writes them while training continues.
"""

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from igpt_model.model.bundle import ModelBundle
from igpt_model.runs.tensor_files import FileChecksum, Index, checksum_of, read_whole
from igpt_model.worker import Worker
from pipeline.errors import IgptError, first_line
from pipeline.hashing import sha256
from pipeline.store import objects

Used = TypeVar("Used")
Fetch = Callable[[str], Path]

FORMAT = 2
INDEX_FILE = "index.json"  # marks a checkpoint as complete
_RANDOM = "optimizer_random"  # state of the random number generator, in the optimizer files
# Exceptions that reading a damaged checkpoint can raise.
DAMAGE = (ValueError, KeyError, TypeError, FileNotFoundError, SafetensorError)


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """The state of a run besides its weights and optimizer."""

    step: int
    """Optimizer steps done; the learning rate is a function of this."""
    cursor: int
    """Samples consumed: the position in the sample order at which the next global batch starts."""
    restarts: int
    """How often the run was resumed from a checkpoint."""
    seconds: float
    """Time spent training so far, restarts included."""
    mlflow_run: str | None
    snapshot: int
    snapshot_digest: str
    """Digest of the content of the dataset snapshot; in runs begun before schema 3, of its manifest."""
    palette_sha256: str
    skipped: int = 0
    """Steps skipped because their loss or gradient was not finite."""
    skipped_in_a_row: int = 0
    """Consecutive skipped steps up to this one."""
    workers: int = 1
    """Number of workers at this step."""
    validation_loss: float | None = None
    """Nats per pixel at this step on the validation images that are evaluated while training, also at the last step,
    so that checkpoints can be compared; None: not evaluated at this step."""
    losses: Sequence[float] = ()
    """Training losses of the last steps, whose mean is logged; stored so that a resumed run logs the same curve."""
    spikes: int = 0
    """Steps skipped because their loss or gradient norm was far above those of the steps before."""
    recent: Sequence[Sequence[float]] = ()
    """Loss and gradient norm of the last steps, by which a resumed run judges the next ones; empty unless the config
    has spike_deviations."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A complete checkpoint, whose files have not been verified yet."""

    url: str
    state: TrainingState
    index: Index

    @property
    def bytes(self) -> int:
        """The total size of its files."""
        return sum(file.bytes for file in self.index.files.values())

    def model(self, fetch: Fetch) -> ModelBundle:
        """Read the model only. Raises one of DAMAGE when files are damaged."""
        bundle = fetch("model.json").parent
        fetch("palette.npy")
        tensors = read_whole(self.index, "weights.", fetch)
        weights = {name.removeprefix("weights."): tensor for name, tensor in tensors.items()}
        return ModelBundle.assemble(bundle, lambda model: weights, origin=self.url)

    def restore(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, average: nn.Module | None, fetch: Fetch
    ) -> None:
        """Load the weights, the optimizer's moments, the random state, and the average of the weights.

        Each rank reads its own shards. Raises IgptError when they do not match the model, or one of DAMAGE when files
        are damaged.
        """
        if any(name.startswith("trained.") for name in self.index.tensors) != (average is not None):
            raise IgptError(
                f"{self.url}: only one of this run and the checkpoint keeps an average of the weights (ema_decay); set "
                "ema_decay as it was, or use another runs folder"
            )
        tensors = _weights(model, average)
        moments: dict[str, dict[str, Tensor]] = {}
        parameters = dict(model.named_parameters())
        for name, stored in self.index.tensors.items():
            if name.startswith("optimizer."):
                owner, key = name.removeprefix("optimizer.").rsplit(".", 1)
                if owner in parameters:
                    like = parameters[owner].detach()
                    whole = tuple(like.shape) == stored.shape
                    value = torch.zeros_like(like) if whole else torch.zeros(stored.shape, device=like.device)
                    moments.setdefault(owner, {})[key] = tensors[name] = value
        self._check_shapes(tensors)
        random = torch.get_rng_state()
        from igpt_model.runs import sharded  # noqa: PLC0415 (a second, which who only opens a model need not wait)

        sharded.read({**tensors, _RANDOM: random}, self.index, fetch)
        torch.set_rng_state(random)
        for name, values in moments.items():
            optimizer.state[parameters[name]] = values

    def _check_shapes(self, tensors: Mapping[str, Tensor]) -> None:
        expected = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        stored = {name: tensor.shape for name, tensor in self.index.tensors.items() if name != _RANDOM}
        wrong = sorted(name for name in {*expected, *stored} if expected.get(name) != stored.get(name))
        if wrong:
            name = wrong[0]
            raise IgptError(
                f"{self.url}: the checkpoint has another model shape ({name} is {stored.get(name)} there and "
                f"{expected.get(name)} here); use the preset, objective, resolution and colours of the checkpoint, or "
                "another runs folder"
            )


def _weights(model: nn.Module, average: nn.Module | None) -> dict[str, Tensor]:
    tensors = {f"weights.{name}": tensor for name, tensor in (average or model).state_dict().items()}
    if average is not None:
        tensors |= {f"trained.{name}": tensor for name, tensor in model.state_dict().items()}
    return tensors


def tensors_of(model: nn.Module, optimizer: torch.optim.Optimizer, average: nn.Module | None) -> dict[str, Tensor]:
    """All tensors of a checkpoint, by name; sharded if the model is."""
    moments = {
        f"optimizer.{name}.{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }
    return {**_weights(model, average), **moments, _RANDOM: torch.get_rng_state()}


def folder_of(run: str, step: int) -> str:
    """The folder of the checkpoint at a step."""
    return objects.join(run, "checkpoints", f"{step:08d}")


def complete(url: str, state: TrainingState, index: Index, files: Mapping[str, bytes]) -> None:
    """Write the remaining files of a checkpoint, then its index file, which marks it as complete."""
    described = dict(index.files)
    for name, data in files.items():
        objects.write_bytes(objects.join(url, name), data)
        described[name] = FileChecksum(bytes=len(data), sha256=sha256(data))
    fields = {"format": FORMAT, "state": asdict(state), **asdict(replace(index, files=described))}
    objects.write_bytes(objects.join(url, INDEX_FILE), json.dumps(fields, sort_keys=True).encode())


def read(url: str) -> Checkpoint:
    """Read the index file of a checkpoint. Raises FileNotFoundError without one, another of DAMAGE for a bad one."""
    fields = json.loads(objects.read_bytes(objects.join(url, INDEX_FILE)))
    if fields["format"] != FORMAT:
        raise IgptError(
            f"{url}: the checkpoint has format {fields['format']}, this version reads {FORMAT}; continue with the "
            "version of igpt-pipeline that wrote it, or train in another runs folder"
        )
    return Checkpoint(
        url=url, state=TrainingState(**with_snapshot_digest(fields["state"])), index=Index.from_fields(fields)
    )


def with_snapshot_digest(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Stored fields with the name of the snapshot's digest that is used since schema 3 of datasets."""
    return {"snapshot_digest" if name == "manifest_digest" else name: value for name, value in fields.items()}


def marked_steps(run: str) -> list[int]:
    """The steps of the run's complete checkpoints, ascending. Raises IgptError for those of an earlier version."""
    folder = objects.join(run, "checkpoints")
    names = [file.url.rsplit("/checkpoints/", 1)[-1] for file in objects.list_files(folder)]
    steps = sorted(int(name[:8]) for name in names if name[:8].isdigit() and name[8:] == f"/{INDEX_FILE}")
    if not steps and any(name[:8].isdigit() and name[8:] == ".json" for name in names):
        raise IgptError(
            f"{run}: its checkpoints are of an earlier version of igpt-pipeline, which this one cannot read; finish "
            "the run with that version, or train in another runs folder"
        )
    return steps


def use_newest(
    run: str,
    use: Callable[[Checkpoint, Fetch], Used],
    *,
    worker: Worker | None = None,
    warn: Callable[[str], None] = lambda line: None,
) -> Used | None:
    """Call `use` on the run's newest undamaged checkpoint and return its result; None when there is no checkpoint.

    A damaged checkpoint is skipped with a warning, and the one before is tried; all workers use the same one. The files
    that `use` fetches are verified, and deleted afterwards. Raises IgptError when all checkpoints are damaged.
    """
    worker = worker or Worker()
    steps = worker.from_first(lambda: marked_steps(run))
    for step in reversed(steps):
        url, used, error = folder_of(run, step), None, None
        try:
            candidate = worker.from_first(lambda url=url: read(url))  # type: ignore[misc]
            with tempfile.TemporaryDirectory(prefix="igpt-checkpoint-") as temporary:
                try:
                    used = use(candidate, _fetcher(candidate, Path(temporary)))
                except Exception as local_error:  # noqa: BLE001 (handled below, by all workers)
                    error = local_error
                error = worker.first_error(error)
        except DAMAGE as damage:
            error = damage
        if error is None:
            return used
        if not isinstance(error, DAMAGE):
            raise error
        warn(f"checkpoint of step {step} is damaged ({first_line(error)}); trying the one before")
    if steps:
        raise IgptError(f"{run}: every checkpoint is damaged; remove {run}/checkpoints to train from the start")
    return None


def _fetcher(checkpoint: Checkpoint, folder: Path) -> Fetch:
    """A function that downloads a file of the checkpoint into a folder, once, and verifies it against the index."""

    def fetch(name: str) -> Path:
        path = folder / name
        if not path.exists():
            partial = path.with_suffix(".partial")
            objects.download(objects.join(checkpoint.url, name), partial)
            if checksum_of(partial) != checkpoint.index.files[name]:
                raise ValueError(f"{name} differs from its checksum")
            partial.replace(path)
        return path

    return fetch


def load_model(url: str) -> ModelBundle:
    """Load the model of the checkpoint in a folder. Raises IgptError when it is damaged."""
    try:
        checkpoint = read(url)
        with tempfile.TemporaryDirectory(prefix="igpt-checkpoint-") as temporary:
            return checkpoint.model(_fetcher(checkpoint, Path(temporary)))
    except DAMAGE as error:
        raise IgptError(f"{url}: the checkpoint is damaged ({first_line(error)}); use another one") from None


def is_good(checkpoint: Checkpoint) -> bool:
    """Read all files of a checkpoint, and return whether all match their checksums."""
    for name in checkpoint.index.files:
        with tempfile.TemporaryDirectory(prefix="igpt-checkpoint-") as temporary:
            try:
                _fetcher(checkpoint, Path(temporary))(name)
            except DAMAGE:
                return False
    return True


def is_checkpoint(url: str) -> bool:
    """Whether a folder is that of a complete checkpoint."""
    return objects.exists(objects.join(url, INDEX_FILE))


def to_prune(losses: Mapping[int, float | None], *, keep_last: int, keep_best: int, keep_every: int = 0) -> list[int]:
    """The steps of the checkpoints to delete, given the validation loss of each checkpoint by step."""
    newest = sorted(losses)[-keep_last:]
    measured = sorted((loss, step) for step, loss in losses.items() if loss is not None)
    best = [step for _, step in measured[:keep_best]]
    regular = [step for step in losses if keep_every and step % keep_every == 0]
    return sorted(set(losses) - {*newest, *best, *regular})


def remove(run: str, step: int) -> None:
    """Delete a checkpoint: its index file first, so that a partly deleted checkpoint does not count as complete."""
    url = folder_of(run, step)
    objects.delete(objects.join(url, INDEX_FILE))
    objects.delete_tree(url)


def losses(run: str) -> dict[int, float | None]:
    """The validation losses of the run's complete checkpoints, by step; None where not evaluated or damaged."""
    by_step: dict[int, float | None] = {}
    for step in marked_steps(run):
        try:
            by_step[step] = read(folder_of(run, step)).state.validation_loss
        except DAMAGE:
            by_step[step] = None
    return by_step
