"""What a training run's folder says about it beside its checkpoints: {run}/run.json, written when it starts."""

import json
from dataclasses import asdict, dataclass

from igpt_model.config import PretrainConfig
from pipeline.errors import IgptError
from pipeline.store import objects


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """With what a run was started last."""

    config: PretrainConfig
    """With the dataset and the number of its snapshot, however they were given."""
    mlflow_run: str | None
    """Id of its MLflow run, where it has one."""


def write(run: str, record: RunRecord) -> None:
    """Put the record into the run's folder."""
    objects.write_bytes(objects.join(run, "run.json"), json.dumps(asdict(record), indent=1, sort_keys=True).encode())


def read(run: str) -> RunRecord:
    """The record of a run. Raises IgptError when the folder is not a run's, or of another version."""
    url = objects.join(run, "run.json")
    try:
        fields = json.loads(objects.read_bytes(url))
        return RunRecord(config=PretrainConfig(**fields["config"]), mlflow_run=fields["mlflow_run"])
    except FileNotFoundError:
        raise IgptError(f"{run}: no training run there; `igpt runs ls FOLDER` names those of a runs folder") from None
    except (ValueError, KeyError, TypeError) as error:
        raise IgptError(f"{url}: not the record of a run of this version ({error})") from None


def find(runs: str) -> list[str]:
    """The folders of the runs in a runs folder, by name."""
    return [file.url.removesuffix("/run.json") for file in objects.list_files(runs) if file.url.endswith("/run.json")]
