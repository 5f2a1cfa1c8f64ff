"""A batch as tasks on a Ray cluster, or in this process: one task a part; a rerun makes what is missing."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from igpt_model.batch import output
from igpt_model.batch.config import BatchConfig
from igpt_model.batch.output import WrittenPart
from igpt_model.batch.shared_model import SharedModel
from igpt_model.batch.work import Work
from igpt_model.evaluating.ray import Executor
from igpt_model.model.bundle import ModelBundle
from igpt_model.probing.feature_cache import network_digest
from igpt_model.runs.open_model import on_device
from pipeline.errors import IgptError
from pipeline.images import palette, palette_table
from pipeline.progress import Progress, silent
from pipeline.samples.parts import Part, PartImages, PartReader, PartSource
from pipeline.store import lease, objects
from pipeline.store.lease import Fence

_PICTURE_BYTES = 64 << 20
# From so many raw images on, making the table of all 2^24 colours takes less time than comparing with every colour.
_IMAGES_FOR_A_TABLE = 100


@dataclass(frozen=True, kw_only=True)
class BatchResult:
    """A complete batch."""

    out: str
    images: int
    rejected: Mapping[str, int]
    """Images that could not be read, by reason."""
    parts: int
    parts_computed: int
    """The others were there already."""


@dataclass(frozen=True, kw_only=True)
class _Job:
    """What all tasks of a batch have in common."""

    out: str
    identity: dict[str, object]
    reader: PartReader
    work: Work
    model: SharedModel
    table: np.ndarray | None
    """The nearest colour of every colour, uint16 [2^24]; None: compare with all."""
    device: str
    fence: Fence


def run_batch(
    work: Work,
    bundle: ModelBundle,
    source: PartSource,
    out: str,
    config: BatchConfig,
    executor: Executor,
    *,
    about: Mapping[str, object],
    progress: Progress = silent,
    say: Callable[[str], None] = lambda line: None,
) -> BatchResult:
    """Do the work on every image of a source, and write it to a folder, exactly once.

    The same batch goes on where an earlier one was interrupted, and does nothing when it is complete. `about` is kept
    with it for people. Of all images only some numbers are in memory at once, by which they are divided into parts.
    Raises IgptError when the folder holds something else, or a process is at work there.
    """
    out = objects.absolute(out).rstrip("/")
    network = bundle.model.config
    most = min(
        work.images_of_a_part(network, config.part_images), max(1, _PICTURE_BYTES // (3 * network.resolution**2))
    )
    parts = source.plan(most)
    identity = {
        **work.identity,
        "network": network_digest(bundle),
        "classes": list(bundle.classes),
        "precision": "bfloat16" if executor.device == "cuda" else "float32",
        **source.identity,
        "part_images": most,
    }
    names = {output.name_of(part, identity): part for part in parts}
    with lease.hold(out, say=say) as held:
        output.begin(out, identity, about)
        written = output.written_parts(out, list(names))
        if (complete := output.manifest_of(out)) is not None:
            if [part["name"] for part in complete["parts"]] != list(names) or len(written) < len(names):
                raise IgptError(
                    f"{out}: is complete, with {complete['images']:,} images; the source has others now, or a part is "
                    "gone; give another folder, or remove it first"
                )
            return _result(out, written, 0)
        job = _Job(
            out=out,
            identity=identity,
            reader=source.reader,
            work=work,
            model=SharedModel.of(bundle),
            table=_table(bundle, parts) if source.gives_pictures else None,
            device=executor.device,
            fence=held.fence,
        )
        missing = [part for name, part in names.items() if name not in written]
        total, done = sum(part.images for part in parts), sum(names[name].images for name in written)
        progress("compute", done, total, "images")
        for number, part in _run(executor, job, source.fill(missing), config):
            output.write_rejected(out, part)
            written[part.name] = part.without_rows()
            done += missing[number].images
            progress("compute", done, total, "images")
        ordered = {name: written[name] for name in names}
        _check_counts(names, ordered)
        held.fence.check()
        output.remove_others(out, ordered.values())
        output.create_manifest(
            out,
            list(ordered.values()),
            identity=identity,
            about=about,
            columns=output.columns_of(out, next(iter(ordered.values()))),
            classes=work.classes_of(bundle),
        )
    return _result(out, ordered, len(missing))


def _run(
    executor: Executor, job: _Job, parts: Iterator[Part], config: BatchConfig
) -> Iterator[tuple[int, WrittenPart]]:
    gpus = 1 / config.tasks_per_gpu if executor.device == "cuda" else 0
    yield from executor.run(
        _make_part,
        ((part,) for part in parts),
        shared=(job,),
        num_gpus=gpus,
        # Perhaps a decoder killed it.
        after_crash=lambda call: (replace(call[0], isolated=True),),
    )


def _make_part(part: Part, job: _Job) -> WrittenPart:
    """Read, compute and write a part."""
    images = job.reader.read(part)
    bundle = on_device(job.model.open(), job.device)
    columns: dict[str, Any] = {
        "key": pa.array(images.keys, pa.string()),
        "uri": pa.array(images.uris, pa.string()),
        "split": pa.array(images.splits, pa.string()),
        "label": pa.array(images.labels, pa.string()),
    }
    tokens_NT, low_NP = _tokens(bundle, images, job.table)
    columns |= job.work.columns(bundle, tokens_NT, images.labels, low_NP)
    job.fence.check()
    name = output.name_of(part, job.identity)
    return output.create_part(job.out, name, pa.table(columns), images.rejected, job.identity)


def _tokens(bundle: ModelBundle, images: PartImages, table: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
    """Images as tokens, int64 [N, T], and for super-resolution their small versions, int64 [N, P]."""
    pictures_NHW3 = images.pictures_NHW3
    if pictures_NHW3 is None:
        assert images.tokens_NT is not None
        tokens_NT = images.tokens_NT.astype(np.int64)
    elif table is not None or not len(pictures_NHW3):
        tokens_NHW = pictures_NHW3[..., 0] if table is None else palette.quantize(pictures_NHW3, table)
        tokens_NT = tokens_NHW.reshape(len(pictures_NHW3), -1).astype(np.int64)
    else:
        tokens_NT = bundle.quantize(pictures_NHW3)
    if bundle.model.config.low_resolution is None or not len(tokens_NT):
        return tokens_NT, None
    return tokens_NT, bundle.shrink(bundle.pictures(tokens_NT) if pictures_NHW3 is None else pictures_NHW3)


def _table(bundle: ModelBundle, parts: list[Part]) -> np.ndarray | None:
    images = sum(part.images for part in parts)
    return palette_table.lookup_table(bundle.palette_K3) if images >= _IMAGES_FOR_A_TABLE else None


def _check_counts(names: Mapping[str, Part], written: Mapping[str, WrittenPart]) -> None:
    """Raise IgptError unless every image is in exactly one part, or rejected by it."""
    for name, part in names.items():
        there = written[name].images + sum(written[name].reasons.values())
        if there != part.images:
            raise IgptError(f"part {name} has {there} images, {part.images} are listed; delete it, and run this again")


def _result(out: str, written: Mapping[str, WrittenPart], computed: int) -> BatchResult:
    return BatchResult(
        out=out,
        images=sum(part.images for part in written.values()),
        rejected=dict(sorted(output.rejected_by_reason(written.values()).items())),
        parts=len(written),
        parts_computed=computed,
    )
