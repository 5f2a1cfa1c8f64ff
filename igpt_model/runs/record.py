"""The folder of a training run and its record, {run}/run.json."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from igpt_model.config import PretrainConfig
from pipeline.dataset.snapshot import Snapshot
from pipeline.errors import IgptError
from pipeline.store import objects
from pipeline.store.objects import StoredFile


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """The config and MLflow run of a run, as of its last start."""

    config: PretrainConfig
    """With the dataset's URL, the snapshot's number and the precision filled in."""
    mlflow_run: str | None
    """Id of its MLflow run; None: it has none."""


def folder_of(config: PretrainConfig, snapshot: Snapshot) -> str:
    """The folder of the run of a config on a snapshot.

    A run of another name is continued if it exists: one that was begun on the same content under another digest of it,
    with the default precision of another device or of before there was one for GPUs, or when configs were flat.
    """
    runs = objects.absolute(config.keeping.runs)
    run = objects.join(runs, config.run_name(snapshot.content_digest))
    if config.keeping.name is not None or _is_run(run):
        return run
    variants = [config]
    if config.model.precision is None:
        other = "float32" if config.training_precision == "bfloat16" else "bfloat16"
        variants.append(config.with_fields(precision=other))
    names = [variant.run_name(digest) for variant in variants for digest in snapshot.digests]
    names += [config.flat_run_name(digest) for digest in snapshot.digests[1:]]
    return next((folder for name in names if _is_run(folder := objects.join(runs, name))), run)


def as_begun(config: PretrainConfig, run: str) -> PretrainConfig:
    """The config of a run with the precision that it was begun with, where the config leaves it to the device."""
    if config.model.precision is not None or not objects.exists(objects.join(run, "run.json")):
        return config
    return config.with_fields(precision=read(run).config.model.precision)


def pinned(config: PretrainConfig, snapshot: Snapshot) -> PretrainConfig:
    """The config as the record of a run on a snapshot holds it."""
    return config.with_fields(dataset=snapshot.dataset, snapshot=snapshot.number, precision=config.training_precision)


def _is_run(run: str) -> bool:
    """Whether a run was begun in a folder, or is finished there."""
    return any(objects.exists(objects.join(run, name)) for name in ("run.json", "result.json"))


def write(run: str, record: RunRecord) -> None:
    """Write the record into the run's folder."""
    objects.write_bytes(objects.join(run, "run.json"), json.dumps(asdict(record), indent=1, sort_keys=True).encode())


def write_first(run: str, record: RunRecord) -> None:
    """Write the record of a run that has none yet."""
    if not _is_run(run):
        write(run, record)


def read(run: str) -> RunRecord:
    """Read the record of a run. Raises IgptError when the folder is not a run, or of another version."""
    url = objects.join(run, "run.json")
    try:
        fields = json.loads(objects.read_bytes(url))
        return RunRecord(config=PretrainConfig.from_fields(**fields["config"]), mlflow_run=fields["mlflow_run"])
    except FileNotFoundError:
        raise IgptError(f"{run}: no training run there; `igpt runs ls FOLDER` names those of a runs folder") from None
    except (ValueError, KeyError, TypeError, IgptError) as error:
        raise IgptError(f"{url}: not the record of a run of this version ({error})") from None


def find(runs: str) -> list[str]:
    """The folders of all runs in a runs folder, by name."""
    return [file.url.removesuffix("/run.json") for file in objects.list_files(runs) if file.url.endswith("/run.json")]


def by_run(files: Sequence[StoredFile]) -> dict[str, list[StoredFile]]:
    """The files of each run in the listing of a runs folder, by the run's folder; others are left out."""
    of_run: dict[str, list[StoredFile]] = {
        file.url.removesuffix("/run.json"): [] for file in files if objects.name_of(file.url) == "run.json"
    }
    for file in files:
        parts = file.url.split("/")
        folders = ("/".join(parts[:count]) for count in range(len(parts) - 1, 0, -1))
        run = next((folder for folder in folders if folder in of_run), None)
        if run is not None:
            of_run[run].append(file)
    return of_run
