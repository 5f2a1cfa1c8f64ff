"""Sends a dataset or raw images through a model: on the Ray cluster where there is one, else in this process."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from flows import trust
from flows.evaluate import choose_executor
from flows.services import settings
from igpt_model.batch import output
from igpt_model.batch.config import BatchConfig
from igpt_model.batch.ray import BatchResult, run_batch
from igpt_model.batch.work import Task, Work
from igpt_model.data.same_tokens import check_same_tokens
from igpt_model.evaluating.ray import Executor
from igpt_model.probing.probed import ProbedModel
from igpt_model.runs.open_model import open_model
from igpt_model.tracking import runs
from pipeline.dataset import snapshot
from pipeline.dataset.snapshot import Snapshot
from pipeline.errors import IgptError
from pipeline.pictures.raw_parts import raw_parts
from pipeline.progress import Progress
from pipeline.samples.parts import PartSource, SnapshotParts
from pipeline.store import objects

_OF_DATASETS, _OF_RAW_IMAGES = ("snapshot", "split"), ("labels", "image_column", "label_column")


def batch(
    task: Task,
    model: str,
    source: str,
    out: str,
    config: BatchConfig,
    *,
    progress: Progress,
    say: Callable[[str], None],
) -> BatchResult:
    """Write the features, classes or scores of a source's images to a folder or URL; a rerun continues.

    `source` is a dataset, or raw images. Raises IgptError when the model cannot do it, or does not match the dataset.
    """
    source, out = objects.absolute(source).rstrip("/"), objects.absolute(out).rstrip("/")
    is_dataset = _is_dataset(source)
    _check(source, out, config, is_dataset=is_dataset)
    opened, reference = _open(model)
    work = Work.of(task, opened, config)
    data = snapshot.read(source, config.snapshot) if is_dataset else None
    about: dict[str, object] = {"model": reference}
    if data is not None:
        check_same_tokens(opened.bundle, data)
        about |= {"dataset": data.dataset, "snapshot": data.number}
    # Builds may read raw images and datasets, and write where datasets are.
    executor = choose_executor(say, "build", "working")
    resolution = opened.bundle.model.config.resolution
    with _parts(source, out, data, config, resolution, executor, progress) as parts:
        return run_batch(work, opened.bundle, parts, out, config, executor, about=about, progress=progress, say=say)


def _open(reference: str) -> tuple[ProbedModel, str]:
    """A registered version with its probe, or any other model without one; and how it can be found again."""
    if not reference.startswith("models:"):
        # The model of a run whose checkpoints are gone is that of its version.
        bundle = open_model(reference, lambda version: trust.registry(settings.tracking_uri()).open(version))
        return ProbedModel.unprobed(bundle), objects.absolute(reference)
    registry = trust.registry(settings.tracking_uri())
    runs.check_reachable(registry.tracking_uri)
    uri = registry.find(reference).uri
    return registry.open_probed(uri), uri


def _is_dataset(url: str) -> bool:
    objects.check_reachable(url)
    try:
        return objects.exists(objects.join(url, "LATEST"))
    except IgptError:  # below a file, such as an archive, nothing can be
        return False


def _check(source: str, out: str, config: BatchConfig, *, is_dataset: bool) -> None:
    """Raise IgptError for a folder that cannot be used, and for fields of the other kind of source."""
    if out == source:
        raise IgptError(f"{out}: is both what is read and what is written; give the batch a folder of its own")
    if is_dataset and out.startswith(f"{source}/"):
        raise IgptError(f"{out}: lies in the dataset, where `igpt dataset gc` removes it; give another folder")
    kind, foreign = ("is a dataset", _OF_RAW_IMAGES) if is_dataset else ("is no dataset", _OF_DATASETS)
    for name in foreign:
        if getattr(config, name) != BatchConfig.__dataclass_fields__[name].default:
            raise IgptError(f"{name} is {getattr(config, name)!r}, and {source} {kind}: leave it out")
    objects.check_reachable(out)
    output.check_usable(out)


@contextmanager
def _parts(
    source: str,
    out: str,
    data: Snapshot | None,
    config: BatchConfig,
    resolution: int,
    executor: Executor,
    progress: Progress,
) -> Iterator[PartSource]:
    """The parts of a snapshot, or without one of the raw images, which are listed within the block."""
    if data is not None:
        yield SnapshotParts(snapshot=data, split=None if config.split == "all" else config.split)
        return
    with raw_parts(
        source,
        out,
        resolution=resolution,
        labels=config.labels,
        image_column=config.image_column,
        label_column=config.label_column,
        on_cluster=executor.is_cluster,
        progress=progress,
    ) as listed:
        yield listed
