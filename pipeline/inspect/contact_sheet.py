"""A contact sheet of some images of a snapshot: the part of the raw image that a sample shows, beside its tokens."""

import io
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from PIL import Image, ImageDraw

from pipeline.config import DatasetConfig
from pipeline.dataset import index, record
from pipeline.dataset.record import Record
from pipeline.dataset.shards import ShardView
from pipeline.dataset.snapshot import ShardEntry, Snapshot
from pipeline.errors import IgptError
from pipeline.images import decode, palette
from pipeline.images.decode import Pictures
from pipeline.printable import printable
from pipeline.source.raw_reads import read_images
from pipeline.store import objects

_CELL = 128  # side of an enlarged picture, in pixels, at most
_CAPTION = 14  # height of a caption, in pixels
_GAP = 8


@dataclass(frozen=True, kw_only=True)
class _Pair:
    original: np.ndarray  # uint8 [C, C, 3], the part of the raw image that the sample shows
    quantized: np.ndarray  # uint8 [R, R, 3]
    caption: str


def contact_sheet(chosen: Snapshot, *, count: int, seed: int, split: str = "train") -> bytes:
    """A PNG of `count` images of a split, drawn at random: the square of the raw image beside its quantized picture.

    Raises IgptError when the split has no images, or when none of the raw images can be read any more.
    """
    shards = chosen.of_split(split)
    generator = np.random.default_rng(seed)
    total = sum(shard.images for shard in shards)
    picks = np.sort(generator.choice(total, size=min(count, total), replace=False))
    ends = np.cumsum([shard.images for shard in shards])
    pairs, addresses = [], record.of_addresses(chosen)
    for number in np.unique(np.searchsorted(ends, picks, side="right")).tolist():
        first = int(ends[number]) - shards[number].images
        rows = picks[(picks >= first) & (picks < ends[number])] - first
        pairs += _pairs(chosen, shards[number], rows, addresses)
    if not pairs:
        raise IgptError(f"{chosen.dataset}: none of {len(picks)} raw images is where the index says; was raw moved?")
    return _draw(pairs)


def _pairs(chosen: Snapshot, shard: ShardEntry, rows: np.ndarray, addresses: Record | None) -> list[_Pair]:
    data = objects.read_bytes(objects.join(chosen.dataset, shard.path))
    view = ShardView(np.frombuffer(data, np.uint8), samples=shard.samples, side=chosen.resolution, name=shard.path)
    crops = shard.samples // shard.images
    table = index.read(chosen.dataset, shard.index_path).take(pa.array(rows))
    images = index.with_addresses(table, addresses)
    columns = {"url": "url", "offset": "offset", "length": "bytes", "etag": "etag", "sha256": "sha256"}
    listing = pa.table({name: images[column] for name, column in columns.items()})
    pairs = []
    for raw in read_images(listing, tolerant=True):
        if raw.rejection is not None:
            continue
        sample = int(rows[raw.row]) * crops
        original = _square(raw.data, chosen, images["key"][raw.row].as_py(), shard.split)
        if original is None:
            continue
        label = images["label"][raw.row].as_py()
        caption = objects.name_of(images["uri"][raw.row].as_py())
        pairs.append(
            _Pair(
                original=original,
                quantized=palette.to_pixels(view.tokens_NHW[sample], chosen.palette()),
                caption=caption if label < 0 else f"{chosen.classes[label]}  {caption}",
            )
        )
    return pairs


def _square(data: bytes, chosen: Snapshot, key: str, split: str) -> np.ndarray | None:
    """The part of an image that its first sample shows, at a higher resolution; uint8 [C, C, 3]."""
    config = DatasetConfig(raw=chosen.dataset, dataset=chosen.dataset, **chosen.config)  # type: ignore[arg-type]
    recipe = replace(config.recipe(split), resolution=_cell(chosen.resolution), smallest_side=1)
    large = decode.decode(data, recipe, key)
    return large.pixels[0] if isinstance(large, Pictures) else None


def _cell(resolution: int) -> int:
    """Side of a picture on the sheet, in pixels: a multiple of the resolution."""
    return resolution * max(1, _CELL // resolution)


def _draw(pairs: list[_Pair]) -> bytes:
    cell = pairs[0].original.shape[0]
    columns = min(4, len(pairs))
    width, height = 2 * cell + _GAP, cell + _CAPTION + _GAP
    sheet = Image.new("RGB", (columns * (width + _GAP) + _GAP, -(-len(pairs) // columns) * height + _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for number, pair in enumerate(pairs):
        left, top = _GAP + number % columns * (width + _GAP), _GAP + number // columns * height
        enlarged = pair.quantized.repeat(cell // len(pair.quantized), 0).repeat(cell // len(pair.quantized), 1)
        sheet.paste(Image.fromarray(pair.original), (left, top))
        sheet.paste(Image.fromarray(enlarged), (left + cell, top))
        # Pillow's built-in font has no characters beyond ASCII.
        caption = printable(pair.caption).encode("ascii", "replace").decode()
        draw.text((left, top + cell + 1), caption[: width // 6], fill="black")
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
