"""Parquet files of images: judged by their metadata before they are read, and read in batches of bounded size.

A file of a few hundred bytes can claim billions of rows or pages of gigabytes, and pyarrow allocates what is claimed.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.dataset import kept_columns
from pipeline.errors import IgptError, first_line
from pipeline.hashing import sha256
from pipeline.source.class_names import (
    check_column,
    check_single,
    class_name,
    has_choice_of_labels,
    label_column_of,
    names_in_metadata,
)
from pipeline.source.members import (
    DamagedContainerError,
    Members,
    ScanOptions,
    damaged,
    is_damage,
    member_etag,
    without_images,
)
from pipeline.source.page_headers import PageHeader, ThriftError, page_header
from pipeline.store import bulk
from pipeline.store.block_reader import BlockReader
from pipeline.store.objects import StoredFile

# The names that data sets on the Hugging Face hub give the column.
_IMAGE_COLUMNS = ("image", "img")
_OF_BYTES = (
    pa.types.is_binary,
    pa.types.is_large_binary,
    pa.types.is_binary_view,
    pa.types.is_fixed_size_binary,
)
_NULL = "the row has no bytes, and a path is not followed; write the bytes into the column"
_BATCH_BYTES = 128 * 1024 * 1024
_BUFFER_BYTES = 1024 * 1024
_HEADER_BYTES = 16 * 1024
_LONGEST_HEADER_BYTES = 1024 * 1024
# A file may claim this many rows beyond one for each of its bytes.
_FREE_ROWS = 10_000
# A page may claim this many bytes, or this many times the bytes that it takes in the file.
_FREE_PAGE_BYTES = 64 * 1024 * 1024
_LARGEST_RATIO = 1000
_ROW_BITS = 40


@dataclass(frozen=True, kw_only=True)
class _Column:
    """The column with the images: binary, or a struct with the field `bytes` as Hugging Face datasets write it."""

    name: str
    is_struct: bool

    @property
    def path(self) -> str:
        return f"{self.name}.bytes" if self.is_struct else self.name


def scan(file: StoredFile, options: ScanOptions) -> pa.Table:
    """List the images of a Parquet file; schema MEMBERS. Raises IgptError for columns that settings have to choose."""
    try:
        parquet = _open(file.url, file.size)
        schema = parquet.schema_arrow
        column = _image_column(schema, options.image_column)
        if column is None:
            return without_images(_why_none(schema, options.image_column))
        if parquet.metadata.num_rows == 0:
            return without_images("it has no rows; write it with the images, or leave it out")
        check_names = {}
        label = options.label_column or label_column_of(schema)
        if label is not None and label in schema.names:
            check_names[label] = "label_column"
        elif label is not None and f"/{label}=" not in file.url:  # or folders of Hive say it
            raise IgptError(
                f"{file.url}: no column {label} among {', '.join(schema.names)}; correct label_column, or leave it out"
            )
        split = options.split_column if options.split_column in schema.names else None
        if split is not None:
            check_names[split] = "split_column"
        check_single(schema, column.name, file.url)
        for name, setting in check_names.items():
            check_column(schema, name, file.url, setting)
        kept = [name for name in options.keep_columns if name in schema.names]
        for name in kept:
            check_single(schema, name, file.url)
        _check(parquet, file, {*check_names, *kept} - {column.name})
        of_images = _OfImages(
            label=label if label in check_names else None,
            has_labels=label in check_names or has_choice_of_labels(schema),
            split=split,
            kept=tuple(kept),
            options=options,
        )
        return _scan(parquet, file, column, of_images)
    except DamagedContainerError as error:
        return damaged(str(error))
    except Exception as error:
        if not is_damage(error):
            raise
        return damaged(f"not a readable Parquet file ({first_line(error)}); write it again")


@dataclass(frozen=True, kw_only=True)
class _OfImages:
    """The columns that say something of the images."""

    label: str | None
    has_labels: bool
    """Whether the file has labels, be it in columns of which none was chosen."""
    split: str | None
    kept: tuple[str, ...]
    options: ScanOptions

    @property
    def names(self) -> list[str]:
        return list(dict.fromkeys([name for name in (self.label, self.split, *self.kept) if name is not None]))


def _open(url: str, size: int, *, buffer_bytes: int = 0) -> pq.ParquetFile:
    """Open a file. Without a buffer, pyarrow reads a column of a whole row group at once, which is faster."""
    return pq.ParquetFile(BlockReader(url, size), buffer_size=buffer_bytes, pre_buffer=False)


def _image_column(schema: pa.Schema, chosen: str | None) -> _Column | None:
    candidates = _IMAGE_COLUMNS if chosen is None else (chosen,)
    for name in candidates:
        if name in schema.names:
            kind = schema.field(schema.names.index(name)).type
            if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
                return _Column(name=name, is_struct=True)
            if pa.types.is_dictionary(kind):
                kind = kind.value_type
            if any(is_of_bytes(kind) for is_of_bytes in _OF_BYTES):
                return _Column(name=name, is_struct=False)
    structs = _structs(schema)
    return _Column(name=structs[0], is_struct=True) if chosen is None and len(structs) == 1 else None


def _structs(schema: pa.Schema) -> list[str]:
    """The columns that Hugging Face datasets would take for images."""
    return [
        field.name
        for field in schema
        if pa.types.is_struct(field.type) and {"bytes", "path"} <= {child.name for child in field.type}
    ]


def _why_none(schema: pa.Schema, chosen: str | None) -> str:
    """Why a file holds no images, and what to do."""
    if chosen in schema.names:
        kind = schema.field(schema.names.index(chosen)).type
        return f"image_column {chosen} is {kind}, and images are binary or struct<bytes: binary, path: string>"
    several = _structs(schema) if chosen is None else []
    wanted = chosen or "image: struct<bytes, path> or image: binary"
    advice = f"to one of {', '.join(several)}" if several else ""
    columns = ", ".join(
        f"{field.name}: {field.type}" if field.name in _IMAGE_COLUMNS else field.name for field in schema
    )
    return (
        f"no column {wanted} among {columns}; write the images in the layout of Hugging Face datasets, or set "
        f"image_column {advice}".rstrip()
    )


def _check(parquet: pq.ParquetFile, file: StoredFile, names: set[str]) -> None:
    """Raise DamagedContainerError when the file claims more rows than its bytes can stand for.

    Or larger pages in the columns of some names; those of the images are checked as they are read.
    """
    metadata = parquet.metadata
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    if min([group.num_rows for group in groups], default=0) < 0 or metadata.num_rows > file.size + _FREE_ROWS:
        raise DamagedContainerError(f"it claims {metadata.num_rows} rows in {file.size} bytes; write it again")
    if sum(group.num_rows for group in groups) != metadata.num_rows:
        raise DamagedContainerError("its row groups have other rows than the file; write it again")
    for group in groups:
        for number in range(group.num_columns):
            chunk = group.column(number)
            is_flat = chunk.path_in_schema in names
            if is_flat or chunk.path_in_schema.split(".")[0] in names:
                _check_pages(chunk, file.url, file.size, group.num_rows if is_flat else chunk.num_values)


def _check_pages(chunk: pq.ColumnChunkMetaData, url: str, size: int, rows: int) -> int:
    """The most bytes that the values of a column of a row group can take.

    Raises DamagedContainerError when a page claims more than its bytes can stand for.
    """
    if rows > size + _FREE_ROWS:
        raise DamagedContainerError(f"a column claims {rows} values in {size} bytes; write it again")
    position = chunk.data_page_offset
    if chunk.has_dictionary_page and chunk.dictionary_page_offset is not None:
        position = min(position, chunk.dictionary_page_offset)
    end = min(position + chunk.total_compressed_size, size)
    values = decoded = dictionary = 0
    # The bytes that an entry of a dictionary takes at least.
    smallest = 1 if chunk.physical_type == "FIXED_LEN_BYTE_ARRAY" else 4
    while position < end and values < rows:
        header = _header_at(url, size, position)
        if header.is_dictionary:
            dictionary = header.uncompressed_bytes
        else:
            values += header.values
            # Every value may be the largest entry of the dictionary.
            decoded += header.values * dictionary if header.uses_dictionary else header.uncompressed_bytes
        largest = max(_FREE_PAGE_BYTES, _LARGEST_RATIO * header.compressed_bytes)
        position += header.header_bytes + header.compressed_bytes
        entries = smallest * header.values if header.is_dictionary else 0
        if position > size or header.uncompressed_bytes > largest or entries > header.uncompressed_bytes:
            raise DamagedContainerError(
                f"a page of {header.compressed_bytes} bytes claims {header.uncompressed_bytes}, or lies beyond the end "
                "of the file; write it again"
            )
        if values > rows:
            raise DamagedContainerError(f"its pages claim {values} values in {rows} rows; write it again")
    return decoded


def _header_at(url: str, size: int, position: int) -> PageHeader:
    for length in (_HEADER_BYTES, _LONGEST_HEADER_BYTES):
        data = bulk.read_range(url, position, min(position + length, size))
        try:
            return page_header(data)
        except ThriftError:
            continue
    raise DamagedContainerError(f"no page of a Parquet file at byte {position}; write it again")


def _scan(parquet: pq.ParquetFile, file: StoredFile, column: _Column, of_images: _OfImages) -> pa.Table:
    members, url, size = Members(), file.url, file.size
    of_column = _offset_of(column, parquet.schema_arrow)
    class_names = names_in_metadata(parquet.schema_arrow, of_images.label or "")
    columns: dict[str, list] = {name: [] for name in of_images.names}
    for group in range(parquet.num_row_groups):
        if columns:
            for batch in parquet.iter_batches(row_groups=[group], columns=list(columns)):
                for name, values in columns.items():
                    values += batch[name].to_pylist()
        for images in _batches(parquet, url, size, group, column):
            for image in images:
                row = len(members.names)
                name, offset = f"{row:08d}", of_column + row
                if image is None:
                    members.add(name, offset, 0, "", part=group, problem=_NULL)
                else:
                    members.add(name, offset, len(image), member_etag(sha256(image)), part=group)
    rows, keep = len(members.names), of_images.options.keep_columns
    if any(len(values) != rows for values in columns.values()) or rows != parquet.metadata.num_rows:
        raise DamagedContainerError(f"{rows} of {parquet.metadata.num_rows} rows could be read; write it again")
    labels = (
        [None] * rows if of_images.label is None else [class_name(it, class_names) for it in columns[of_images.label]]
    )
    splits = None if of_images.split is None else [class_name(it) for it in columns[of_images.split]]
    kept = [of_images.options.nothing_kept] * rows
    if of_images.kept:
        cells = zip(*(columns[name] for name in of_images.kept), strict=True)
        kept = [kept_columns.to_json(dict(zip(of_images.kept, row, strict=True)), keep) for row in cells]
    return members.table(labels, splits=splits, kept=kept, has_labels=of_images.has_labels)


def _batches(parquet: pq.ParquetFile, url: str, size: int, group: int, column: _Column) -> Iterator[list[bytes | None]]:
    """The images of a row group, in its order, in batches of bounded size; None for a row without one."""
    metadata = parquet.metadata.row_group(group)
    chunks = [metadata.column(number) for number in range(metadata.num_columns)]
    chunk = next(chunk for chunk in chunks if chunk.path_in_schema == column.path)
    decoded = _check_pages(chunk, url, size, metadata.num_rows)
    if max(decoded, chunk.total_compressed_size) <= _BATCH_BYTES:
        table = parquet.read_row_group(group, columns=[column.path])
        yield from (_bytes_of(chunk, column) for chunk in table.column(0).chunks)
        return
    dictionary = 0
    if chunk.has_dictionary_page and chunk.dictionary_page_offset is not None:
        dictionary = _header_at(url, size, chunk.dictionary_page_offset).uncompressed_bytes
    rows = max(1, _BATCH_BYTES // max(1, dictionary, chunk.total_uncompressed_size // max(1, metadata.num_rows)))
    buffered = _open(url, size, buffer_bytes=_BUFFER_BYTES)
    for batch in buffered.iter_batches(batch_size=rows, row_groups=[group], columns=[column.path]):
        yield _bytes_of(batch.column(0), column)


def _bytes_of(values: pa.Array, column: _Column) -> list[bytes | None]:
    if column.is_struct:
        values = pc.struct_field(values, "bytes")  # null where the struct is
    return values.to_pylist()


def _offset_of(column: _Column, schema: pa.Schema) -> int:
    """What is added to the number of a row, so that the column is known when it is read: 0 for the one of its name."""
    return 0 if column == _image_column(schema, None) else (1 + schema.names.index(column.name)) << _ROW_BITS


def read(url: str, size: int, offsets: np.ndarray) -> Iterator[list[bytes]]:
    """The images at some ascending offsets, in batches. Raises FileNotFoundError when the file has other rows."""
    if not len(offsets):
        return
    number, rows = int(offsets[0]) >> _ROW_BITS, offsets & ((1 << _ROW_BITS) - 1)
    try:
        parquet = _open(url, size)
        schema = parquet.schema_arrow
        if number > len(schema):
            raise FileNotFoundError(f"{url} has other columns")
        column = _image_column(schema, schema.names[number - 1] if number else None)
        ends = np.cumsum([parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)])
        if column is None or not len(ends) or rows[-1] >= ends[-1]:
            raise FileNotFoundError(f"{url} has other rows")
        groups = np.searchsorted(ends, rows, side="right")
        for group in np.unique(groups).tolist():
            first = int(ends[group]) - parquet.metadata.row_group(group).num_rows
            wanted = rows[groups == group] - first
            start = 0
            for images in _batches(parquet, url, size, group, column):
                here = wanted[(wanted >= start) & (wanted < start + len(images))]
                if len(here):
                    yield [images[int(row) - start] or b"" for row in here]
                start += len(images)
                if start > wanted[-1]:
                    break
    except Exception as error:
        if not is_damage(error):
            raise
        raise IgptError(f"{url}: cannot be read ({first_line(error)}); write the file again") from None
