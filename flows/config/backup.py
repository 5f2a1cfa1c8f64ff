"""Settings of a backup."""

import re
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pipeline.errors import IgptError
from pipeline.typed_config.config import Config
from pipeline.typed_config.ranges import Range

_DATABASE = re.compile(r"[A-Za-z0-9_]+")


@dataclass(frozen=True, kw_only=True)
class BackupConfig(Config):
    """What a backup saves. Raw images and feature caches are never in it."""

    shown_by: ClassVar[str] = "`igpt config backup`"

    datasets: tuple[str, ...] = ("s3://datasets",)
    """Buckets or folders of datasets. All snapshots are saved, with all files that they name."""
    runs: tuple[str, ...] = ("s3://runs",)
    """Buckets or folders of training runs. Each is saved with its newest checkpoint, unless its model is registered."""
    artifacts: tuple[str, ...] = ("s3://mlflow",)
    """Buckets or folders of MLflow's artifacts, with the files of registered versions. All objects are saved."""
    databases: tuple[str, ...] = ("mlflow", "mlflow_auth", "prefect")
    """PostgreSQL databases. pg_dump reads PGHOST, PGUSER, and the password from PGSERVICEFILE. Empty: none."""
    keep: Annotated[int, Range(at_least=1)] = 14
    """Number of backups to keep; older ones are removed once a newer one is whole."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.databases:
            if not _DATABASE.fullmatch(name):
                raise IgptError(f"databases has {name!r}: a name consists of letters, digits and underscores")
        roots = [root.rstrip("/") for root in self.roots]
        for root in roots:
            inside = next((other for other in roots if f"{root}/".startswith(f"{other}/") and other is not root), None)
            if not root:
                raise IgptError("a folder to save is empty: give a URL such as s3://runs")
            if inside is not None:
                raise IgptError(f"{root} is inside of {inside}: name each folder once")

    @property
    def roots(self) -> tuple[str, ...]:
        """All buckets and folders."""
        return (*self.datasets, *self.runs, *self.artifacts)
