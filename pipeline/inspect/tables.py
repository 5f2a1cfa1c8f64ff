"""What is in a snapshot, row by row: its images, its rejected images, and the addresses of its shards."""

from collections.abc import Iterator, Sequence

import pyarrow as pa

from pipeline.dataset import index, record
from pipeline.dataset.snapshot import ShardEntry, Snapshot
from pipeline.errors import IgptError
from pipeline.store import objects


def shards_of(chosen: Snapshot, split: str | None) -> tuple[ShardEntry, ...]:
    """The shards of a split, or of all. Raises IgptError when it has none."""
    return chosen.shards if split is None else chosen.of_split(split)


def shard_urls(chosen: Snapshot, split: str | None = None) -> list[str]:
    """The addresses of the shards with samples, by split and number. Raises IgptError when a split has none."""
    return [objects.join(chosen.dataset, shard.path) for shard in shards_of(chosen, split) if shard.samples]


def in_braces(urls: Sequence[str]) -> str:
    """Addresses in one folder as one line for webdataset: folder/{a,b}.tar."""
    folder, _, _ = urls[0].rpartition("/")
    names = [url.rpartition("/")[2].removesuffix(".tar") for url in urls]
    return f"{folder}/{names[0]}.tar" if len(names) == 1 else f"{folder}/{{{','.join(names)}}}.tar"


def images(chosen: Snapshot, split: str | None = None) -> Iterator[pa.Table]:
    """The images in the shards of a snapshot, a table a shard: the columns of its index, and split, class and shard.

    Addresses are those of today.
    """
    shards = shards_of(chosen, split)
    addresses = record.of_addresses(chosen)
    tables = index.read_all(chosen.dataset, [shard.index_path for shard in shards])
    for shard, table in zip(shards, tables, strict=True):
        classes = [None if label < 0 else chosen.classes[label] for label in table["label"].to_pylist()]
        yield _with(index.with_addresses(table, addresses), shard).append_column(
            "class", pa.array(classes, pa.string())
        )


def rejected(chosen: Snapshot, split: str | None = None) -> Iterator[pa.Table]:
    """The images in quarantine of a snapshot, a table a shard: the columns of its quarantine, and split and shard."""
    shards = [shard for shard in chosen.shards if shard.quarantine_path is not None and split in (None, shard.split)]
    addresses = record.of_addresses(chosen)
    tables = index.read_all(chosen.dataset, [str(shard.quarantine_path) for shard in shards])
    for shard, table in zip(shards, tables, strict=True):
        yield _with(index.with_addresses(table, addresses), shard)


def _with(table: pa.Table, shard: ShardEntry) -> pa.Table:
    table = table.replace_schema_metadata(None)
    for name, value in (("split", shard.split), ("shard", shard.name)):
        table = table.append_column(name, pa.array([value] * len(table), pa.string()))
    return table


def together(tables: Iterator[pa.Table]) -> pa.Table | None:
    """All tables in one; columns that some lack are null there. None without a table.

    Raises IgptError when a kept column is text in one shard and a number in another.
    """
    parts = list(tables)
    if not parts:
        return None
    try:
        return pa.concat_tables(parts, promote_options="permissive")
    except (pa.ArrowTypeError, pa.ArrowInvalid) as error:
        raise IgptError(f"a kept column has several types ({error}); build with --remake, or take JSON") from None
