"""Raw images in parts, decoded to pictures of one size: as a build lists and decodes them, without a dataset."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from pipeline.build.decode_rows import decode_rows
from pipeline.config import DatasetConfig
from pipeline.dataset import index
from pipeline.dataset.record import root_of
from pipeline.errors import IgptError
from pipeline.hashing import digest, sha256
from pipeline.images.rejection import Rejection
from pipeline.progress import Progress
from pipeline.samples.parts import Part, PartImages, RejectedImage
from pipeline.source.list_source import list_source
from pipeline.source.listing import Listing
from pipeline.source.members import ScanOptions
from pipeline.source.scan_cache import ScanCache
from pipeline.store import objects

_CENTRE_SQUARE = "test"  # the split whose images are never cut at random


@dataclass(frozen=True, kw_only=True)
class RawReader:
    """Reads and decodes rows of a listing."""

    config: DatasetConfig
    isolated: bool
    """Whether images are always decoded in a child process: where this one must not end with a decoder."""

    def read(self, part: Part) -> PartImages:
        """The pictures of a part, uint8 [N, R, R, 3], and the images that cannot be read."""
        listing: pa.Table = part.content
        pictures: dict[int, np.ndarray] = {}
        rejected: dict[int, RejectedImage] = {}
        rows = listing.select(["key", "url", "offset", "name", "label"]).to_pylist()
        uris = [index.uri_of(row["url"], row["offset"], row["name"]) for row in rows]
        isolated = self.isolated or part.isolated
        for decoded in decode_rows(listing, self.config, _CENTRE_SQUARE, tolerant=True, isolated=isolated):
            if isinstance(decoded.outcome, Rejection):
                rejected[decoded.row] = RejectedImage(
                    key=rows[decoded.row]["key"],
                    uri=uris[decoded.row],
                    reason=decoded.outcome.reason.value,
                    detail=decoded.outcome.detail,
                )
            else:
                pictures[decoded.row] = decoded.outcome.pixels[0]
        kept, side = sorted(pictures), self.config.resolution
        return PartImages(
            keys=[rows[row]["key"] for row in kept],
            uris=[uris[row] for row in kept],
            splits=[None] * len(kept),
            labels=[rows[row]["label"] for row in kept],
            pictures_NHW3=np.stack([pictures[row] for row in kept]) if kept else np.zeros((0, side, side, 3), np.uint8),
            rejected=tuple(rejected[row] for row in sorted(rejected)),
        )


@dataclass(frozen=True, kw_only=True)
class RawParts:
    """A listing of raw images, divided. Objects come by their keys, then members of containers in their order."""

    reader: RawReader
    listing: Listing
    order_N: np.ndarray
    """Row numbers of the listing."""

    @property
    def gives_pictures(self) -> bool:
        """Yes: a palette is the model's affair."""
        return True

    @property
    def identity(self) -> dict[str, object]:
        """Where the images and their labels are, and the columns that are read."""
        config = self.reader.config
        return {
            "raw": root_of(config.raw),
            "image_column": config.image_column,
            "label_column": config.label_column,
            **({} if config.labels is None else {"labels": objects.absolute(config.labels)}),
        }

    def plan(self, most: int) -> list[Part]:
        """The parts, with numbers of rows in place of the rows."""
        rows, parts = self.listing.rows, []
        for number, first in enumerate(range(0, len(self.order_N), most)):
            chosen = self.order_N[first : first + most]
            columns = (rows.keys.high[chosen], rows.keys.low[chosen], rows.versions[chosen])
            of_rows = [sha256(column.tobytes()) for column in columns]
            parts.append(Part(number=number, digest=digest(of_rows), images=len(chosen), content=chosen))
        return parts

    def fill(self, parts: Iterable[Part]) -> Iterator[Part]:
        """The parts with their rows of the listing; holds a bounded number of rows in memory."""
        wanted = list(parts)
        tables = self.listing.gather([part.content for part in wanted])
        for part, table in zip(wanted, tables, strict=True):
            yield replace(part, content=table)


@contextmanager
def raw_parts(
    raw: str,
    out: str,
    *,
    resolution: int,
    labels: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    on_cluster: bool,
    progress: Progress,
) -> Iterator[RawParts]:
    """List the images of a folder, an archive, Parquet files or one image; the listing exists within the block.

    Labels are those that a build gives (docs/data.md), with `labels` those of a file. Images of any size are taken.
    What lies below `out` is no part of the source; scans of containers are kept there. Without a cluster all is done in
    this process. Raises IgptError when the source does not exist or has no image, or the label file names none of them.
    """
    try:
        config = DatasetConfig(
            raw=raw,
            dataset=out,
            resolution=resolution,
            labels=labels,
            image_column=image_column,
            label_column=label_column,
            min_size=1,
        )
    except IgptError as error:
        raise IgptError(f"{raw}: a model of these images cannot be given raw images: {error}") from None
    scan = None
    if on_cluster:
        scan = ScanCache(
            objects.absolute(out), root_of(raw), ScanOptions.of(config), keep=True, fresh=False, progress=progress
        )
    with Listing() as listing:
        list_source(config, listing, scan=scan, progress=progress)
        rows = listing.rows
        is_object = rows.groups < 0
        # A folder is listed in no particular order; containers are sorted, and their members in order.
        keys = (np.where(is_object, rows.keys.low, 0), np.where(is_object, rows.keys.high, 0), ~is_object)
        order_N = np.lexsort(keys)
        yield RawParts(reader=RawReader(config=config, isolated=not on_cluster), listing=listing, order_N=order_N)
