"""A snapshot as Arrow tables, one a shard: pixels, labels, and all that the index knows of the images.

    table = arrow.table("s3://datasets/photos", split="test", pixels="rgb")
    arrow.pixels_of(table["rgb"])  # uint8 [N, H, W, 3]

Pixels are nested lists of fixed size, which pandas, Polars, DuckDB, Parquet and Hugging Face's `datasets` understand.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from pipeline.dataset import index, record, verified_shards
from pipeline.dataset.record import Record
from pipeline.dataset.snapshot import ShardEntry
from pipeline.errors import IgptError
from pipeline.inspect.tables import together
from pipeline.readers.selection import Selection, image_of, select

_OWN = ("key", "crop", "label", "class_name", "split", "shard", "tokens", "rgb")


def tables(
    dataset: str, *, split: str | None = None, snapshot: int | None = None, pixels: str = "tokens"
) -> Iterator[pa.Table]:
    """The samples of a snapshot, a table a shard: `key`, `crop`, `label`, `class_name`, `split`, `shard`, then `tokens`
    (uint16 [H, W]) or `rgb` (uint8 [H, W, 3]), then the other columns of the index, with the kept ones.

    `class_name` is null without a class. A kept column with a name of these is called kept_NAME. Raises IgptError, when
    a table is read too: each shard is compared with the snapshot's checksum.
    """
    selection = select(dataset, split=split, snapshot=snapshot, pixels=pixels)
    addresses = record.of_addresses(selection.snapshot)
    return (table_of(selection, shard, addresses) for shard in selection.shards)


def table(dataset: str, *, split: str | None = None, snapshot: int | None = None, pixels: str = "tokens") -> pa.Table:
    """All tables in one, for what fits memory; a kept column that some shards lack is null there. Raises IgptError."""
    return together(tables(dataset, split=split, snapshot=snapshot, pixels=pixels))


def table_of(selection: Selection, shard: ShardEntry, addresses: Record | None) -> pa.Table:
    """The table of one shard, with the addresses of the raw images that the record tells."""
    view = verified_shards.read(selection.snapshot, shard)
    images = index.with_addresses(index.read(selection.snapshot.dataset, shard.index_path), addresses)
    row_of = {key: row for row, key in enumerate(images["key"].to_pylist())}
    keys, crops = zip(*(image_of(key.decode()) for key in view.keys_N.tolist()), strict=True)
    try:
        rows = pa.array([row_of[key] for key in keys], pa.int64())
    except KeyError as error:
        raise IgptError(
            f"{selection.snapshot.dataset}/{shard.index_path}: the image {error} of the shard is not in it; "
            "`igpt dataset verify` tells which files are damaged"
        ) from None
    labels = view.labels_N.tolist()
    columns: dict[str, pa.Array] = {
        "key": pa.array(keys, pa.string()),
        "crop": pa.array(crops, pa.int16()),
        "label": pa.array(labels, pa.int64()),
        "class_name": pa.array(map(selection.class_name, labels), pa.string()),
        "split": pa.array([shard.split] * len(keys), pa.string()),
        "shard": pa.array([shard.name] * len(keys), pa.string()),
        selection.pixels: _nested(selection.present(view.tokens_NHW)),
    }
    for field in index.INDEX:  # an index of an earlier format lacks some
        if field.name not in columns:
            values = images[field.name] if field.name in images.column_names else pa.nulls(len(images), field.type)
            columns[field.name] = values.take(rows)
    for name in images.column_names:
        if name not in index.INDEX.names:
            columns[f"kept_{name}" if name in _OWN else name] = images[name].take(rows)
    return pa.table(columns)


def _nested(array: np.ndarray) -> pa.Array:
    """An array [N, ...] as N nested lists of fixed size."""
    values = pa.array(array.reshape(-1))
    for length in reversed(array.shape[1:]):
        values = pa.FixedSizeListArray.from_arrays(values, length)
    return values


def pixels_of(column: pa.ChunkedArray) -> np.ndarray:
    """The pixels of a table's column `tokens` or `rgb` as an array [N, H, W] or [N, H, W, 3]."""
    values, shape = column.combine_chunks(), [len(column)]
    while pa.types.is_fixed_size_list(values.type):
        shape.append(values.type.list_size)
        values = values.flatten()
    return values.to_numpy().reshape(shape)
