"""The model that a training starts from instead of random weights: kept in {run}/parent/ before the first step.

From there every worker reads it, also those that know no registry, and also when the registered version is long gone.
"""

import json
import tempfile
from dataclasses import asdict
from pathlib import Path

from igpt_model.config import PretrainConfig
from igpt_model.model.bundle import FILES, ModelBundle
from igpt_model.runs import checkpoint
from igpt_model.runs.open_model import load_folder
from pipeline.dataset.snapshot import Snapshot
from pipeline.errors import IgptError
from pipeline.images import palette as palettes
from pipeline.store import objects

_MARK = "parent.json"  # which version it is; written last


def of_run(run: str) -> str:
    """The version that a run has started from, or is going to; empty: random weights."""
    try:
        return str(json.loads(objects.read_bytes(objects.join(_folder(run), _MARK)))["model"])
    except FileNotFoundError:
        return ""


def is_needed(run: str, config: PretrainConfig) -> bool:
    """Whether a run has yet to start from a parent. Raises IgptError when it has started from something else."""
    started, known, wanted = bool(checkpoint.marked_steps(run)), of_run(run), config.model.parent
    if known != wanted and (known or started):
        raise IgptError(
            f"{run}: it has started from {known or 'random weights'}, and parent is {wanted or 'empty'} now; "
            "give it the parent it had, or another name or runs folder"
        )
    return bool(wanted) and not started


def keep(run: str, parent: ModelBundle, config: PretrainConfig, snapshot: Snapshot) -> None:
    """Put the config's parent into the run's folder. Raises IgptError when it is not a model of the same kind."""
    _check(parent, config, snapshot)
    with tempfile.TemporaryDirectory(prefix="igpt-parent-") as temporary:
        parent.save(Path(temporary))
        for name in FILES:
            objects.upload(Path(temporary) / name, objects.join(_folder(run), name))
    objects.write_bytes(objects.join(_folder(run), _MARK), json.dumps({"model": config.model.parent}).encode())


def read(run: str, config: PretrainConfig, snapshot: Snapshot) -> ModelBundle:
    """The parent of a run. Raises IgptError when it is not there, or not a model of the same kind."""
    if not of_run(run):
        raise IgptError(
            f"{run}: parent is {config.model.parent} and its model is not in {_folder(run)} yet; `igpt pretrain` with "
            "the same config puts it there"
        )
    parent = load_folder(_folder(run))
    _check(parent, config, snapshot)
    return parent


def _folder(run: str) -> str:
    return objects.join(run, "parent")


def _check(parent: ModelBundle, config: PretrainConfig, snapshot: Snapshot) -> None:
    name_of_parent, ours = config.model.parent, config.model_for(snapshot)
    theirs = asdict(parent.model.config)
    for name, value in asdict(ours).items():
        if theirs[name] != value:
            raise IgptError(
                f"parent {name_of_parent} has {name} {theirs[name]}, this training {value}: weights of one shape do "
                "not fit another; give it the parent's shape, objective and a dataset of its kind, or leave parent out"
            )
    palette = palettes.sha256(parent.palette_K3)
    if palette != snapshot.palette_sha256:
        raise IgptError(
            f"parent {name_of_parent} has palette {palette[:12]}, the dataset {snapshot.palette_sha256[:12]}: the same "
            "number means another colour; build the dataset with the palette that `igpt models palette` writes"
        )
    if config.model.class_conditional and parent.classes != tuple(snapshot.classes):
        raise IgptError(
            f"parent {name_of_parent} was told other classes than the dataset has, or in another order; leave "
            "class_conditional out, or train without parent"
        )
