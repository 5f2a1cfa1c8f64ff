"""Remove what nobody needs any more: old checkpoints, features, logs, and what was deleted in MLflow."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from flows.config.clean import CleanConfig
from flows.prefect_ops import old_flow_runs
from igpt_model.probing import feature_cache
from igpt_model.registry.client import Registry
from igpt_model.runs import old_checkpoints
from igpt_model.tracking import deleted_runs, runs
from igpt_model.tracking.deleted_runs import Deleted
from pipeline.errors import IgptError
from pipeline.store import bulk, objects

_DAY = 86_400.0
_FEATURES = "-features"


@dataclass(frozen=True, kw_only=True)
class Cleaned:
    """Something that was removed, or would be."""

    what: str
    """checkpoints, stacks, features, tracebacks, MLflow runs, MLflow models or MLflow experiments."""
    where: str
    count: int
    bytes: int | None
    """None: not known."""
    kept_because: str = ""
    """Why it was not removed after all."""


def clean(
    config: CleanConfig,
    *,
    tracking_uri: str,
    mlflow_database: str | None,
    logs: Path,
    dry_run: bool,
    say: Callable[[str], None],
) -> Iterator[Cleaned]:
    """Remove what is old by the config, and yield it; with `dry_run`, only yield it.

    What a process works on stays, and is yielded with the reason. Raises IgptError, before anything is removed, when a
    bucket, MLflow or its database does not answer.
    """
    runs.check_reachable(tracking_uri)
    for root in (*config.runs, *config.datasets):
        objects.check_reachable(objects.absolute(root))
    deleted = None
    if config.mlflow is not None:
        if mlflow_database is None:
            say("what was deleted in MLflow stays: MLFLOW_BACKEND_STORE_URI is not set to its database")
        else:
            deleted = deleted_runs.find(mlflow_database, config.mlflow)
    registry = Registry(tracking_uri)
    for root in config.runs:
        yield from _runs(objects.absolute(root), config, registry, dry_run)
    if config.features is not None:
        for root in config.datasets:
            yield from _features(objects.absolute(root), config.features * _DAY, dry_run)
    if config.logs is not None:
        yield from _tracebacks(logs, config.logs * _DAY, dry_run)
    if deleted and mlflow_database is not None and config.mlflow is not None:
        reason = next(deleted_runs.used_by(tracking_uri), "")
        if not reason and not dry_run:
            deleted_runs.remove(mlflow_database, tracking_uri, config.mlflow)
        yield from _of_mlflow(deleted, reason)


def _runs(root: str, config: CleanConfig, registry: Registry, dry_run: bool) -> Iterator[Cleaned]:
    def is_version(uri: str) -> bool:
        name = uri.removeprefix("models:/").rpartition("/")[0]
        return name in registry.names() and any(version.uri == uri for version in registry.versions(name))

    old = old_checkpoints.find(
        root,
        checkpoint_seconds=None if config.checkpoints is None else config.checkpoints * _DAY,
        stack_seconds=None if config.logs is None else config.logs * _DAY,
        is_version=is_version,
    )
    for files in old:
        removed = dry_run or old_checkpoints.remove(files)
        yield Cleaned(
            what=files.what,
            where=files.run,
            count=files.count,
            bytes=files.bytes,
            kept_because="" if removed else "another process works on the run",
        )


def _features(root: str, min_seconds: float, dry_run: bool) -> Iterator[Cleaned]:
    caches = set()
    for file in bulk.list_files(root):
        head, mark, _ = file.url[len(root) :].partition(f"{_FEATURES}/")
        if mark:
            caches.add(f"{root}{head}{_FEATURES}")
    for cache in sorted(caches):
        old, reason = feature_cache.find_old(cache, min_seconds), ""
        if old and not dry_run:
            try:
                old = list(feature_cache.remove_old(cache, min_seconds))
            except IgptError as error:
                reason = str(error)
        if old:
            yield Cleaned(
                what="features",
                where=cache,
                count=len(old),
                bytes=sum(features.bytes for features in old),
                kept_because=reason,
            )


def _tracebacks(folder: Path, min_seconds: float, dry_run: bool) -> Iterator[Cleaned]:
    now = time.time()
    old = [file for file in folder.glob("error-*.txt") if now - file.stat().st_mtime > min_seconds]
    if old:
        size = sum(file.stat().st_size for file in old)
        for file in () if dry_run else old:
            file.unlink(missing_ok=True)
        yield Cleaned(what="tracebacks", where=str(folder), count=len(old), bytes=size)


def _of_mlflow(deleted: Deleted, reason: str) -> Iterator[Cleaned]:
    for kind in ("runs", "models", "experiments"):
        if ids := getattr(deleted, kind):
            yield Cleaned(what=f"MLflow {kind}", where=", ".join(ids), count=len(ids), bytes=None, kept_because=reason)


def about_prefect() -> str:
    """A line on the flow runs that Prefect's server removes, or does not."""
    old = old_flow_runs.read()
    if old.removes:
        return (
            f"Prefect removes flow runs, with their logs, {old.days:g} days after their end itself: {old.due} are due"
        )
    return (
        f"Prefect keeps all flow runs, of which {old.due} ended more than {old.days:g} days ago: start its server with "
        f"{old_flow_runs.SETTING}=events,flow_runs"
    )
