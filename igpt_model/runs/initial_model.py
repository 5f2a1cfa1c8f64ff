"""The parent model that a run starts from instead of random weights, copied to {run}/parent/ before the first step.

Workers read it from there, so they need no access to the registry, and the registered version may be deleted.
"""

import json
import tempfile
from dataclasses import asdict
from pathlib import Path

from igpt_model.config import PretrainConfig
from igpt_model.model.bundle import FILES, ModelBundle
from igpt_model.runs import checkpoint, record
from igpt_model.runs.open_model import load_folder
from pipeline.dataset.snapshot import Snapshot
from pipeline.errors import IgptError
from pipeline.images import palette
from pipeline.store import objects

_PARENT_FILE = "parent.json"  # names the version; written last, when the model is complete


def of_run(run: str) -> str:
    """The registered version that a run starts from; empty: random weights."""
    return _stored(run).get("model", "")


def alias_of(run: str) -> str:
    """The alias by which a run's config named its parent, as in models:/igpt@champion; empty: none, or a number."""
    return _stored(run).get("alias", "")


def begun_from(config: PretrainConfig, snapshot: Snapshot) -> str | None:
    """The version that this config's run on a snapshot was begun from, given that its parent is an alias.

    Empty: random weights; None: there is no such run. So a run keeps its parent, and a finished one is not trained
    again, when the alias moves.
    """
    runs = objects.absolute(config.keeping.runs)
    if config.keeping.name is not None:
        begun = [objects.join(runs, config.keeping.name)]
    else:
        end = f"/parent/{_PARENT_FILE}"
        begun = [file.url.removesuffix(end) for file in objects.list_files(runs) if file.url.endswith(end)]
    versions = {of_run(run) for run in begun if alias_of(run) == config.model.parent}
    for version in sorted(versions, key=lambda version: int(version.rpartition("/")[2] or 0), reverse=True):
        run = record.folder_of(config.with_fields(parent=version), snapshot)
        if alias_of(run) == config.model.parent and of_run(run) == version:
            return version
    return None


def keep_alias(run: str, alias: str) -> None:
    """Record that a run starts from random weights because nothing had the alias when it began."""
    _store(run, model="", alias=alias)


def _stored(run: str) -> dict[str, str]:
    try:
        return dict(json.loads(objects.read_bytes(objects.join(_folder(run), _PARENT_FILE))))
    except FileNotFoundError:
        return {}


def _store(run: str, *, model: str, alias: str) -> None:
    fields = {"model": model, **({"alias": alias} if alias else {})}
    objects.write_bytes(objects.join(_folder(run), _PARENT_FILE), json.dumps(fields).encode())


def is_needed(run: str, config: PretrainConfig) -> bool:
    """Whether a run has yet to load its parent. Raises IgptError when it started from another parent."""
    started, stored, wanted = bool(checkpoint.marked_steps(run)), of_run(run), config.model.parent
    if stored != wanted and (stored or started):
        raise IgptError(
            f"{run}: it started from {stored or 'random weights'}, and parent is {wanted or 'empty'} now; "
            "set parent as it was, or use another name or runs folder"
        )
    return bool(wanted) and not started


def keep(run: str, parent: ModelBundle, config: PretrainConfig, snapshot: Snapshot, alias: str = "") -> None:
    """Copy the config's parent into the run's folder, with the alias by which it was named.

    Raises IgptError when it does not match the config.
    """
    _check(parent, config, snapshot)
    with tempfile.TemporaryDirectory(prefix="igpt-parent-") as temporary:
        parent.save(Path(temporary))
        for name in FILES:
            objects.upload(Path(temporary) / name, objects.join(_folder(run), name))
    _store(run, model=config.model.parent, alias=alias)


def read(run: str, config: PretrainConfig, snapshot: Snapshot) -> ModelBundle:
    """Load the parent of a run. Raises IgptError when it is missing or does not match the config."""
    if not of_run(run):
        raise IgptError(
            f"{run}: parent is {config.model.parent} and its model is not in {_folder(run)} yet; run `igpt pretrain` "
            "with the same config, which copies it"
        )
    parent = load_folder(_folder(run))
    _check(parent, config, snapshot)
    return parent


def _folder(run: str) -> str:
    return objects.join(run, "parent")


def _check(parent: ModelBundle, config: PretrainConfig, snapshot: Snapshot) -> None:
    parent_name, expected = config.model.parent, config.model_for(snapshot)
    parent_fields = asdict(parent.model.config)
    for name, value in asdict(expected).items():
        if parent_fields[name] != value:
            raise IgptError(
                f"parent {parent_name} has {name} {parent_fields[name]}, this training {value}; use the parent's shape "
                "and objective and a dataset of its resolution and palette, or leave parent out"
            )
    parent_palette = palette.sha256(parent.palette_K3)
    if parent_palette != snapshot.palette_sha256:
        raise IgptError(
            f"parent {parent_name} has palette {parent_palette[:12]}, the dataset {snapshot.palette_sha256[:12]}: the "
            "same token means another colour; build the dataset with the palette that `igpt models palette` writes"
        )
    if config.model.class_conditional and parent.classes != tuple(snapshot.classes):
        raise IgptError(
            f"parent {parent_name} was trained with other classes than the dataset has, or in another order; leave "
            "class_conditional out, or leave parent out"
        )
