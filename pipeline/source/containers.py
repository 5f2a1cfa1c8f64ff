"""Files that hold many images: tars, zip archives and Parquet. Scanned once, read in parts.

A member's etag is a digest of its bytes, so that images stay unchanged when their container is rewritten with some
images more or less. A container that cannot be read costs itself: its scan is one row that says why.
"""

import io
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.source import parquet_files, tar_files, tar_stream, zip_files
from pipeline.source.members import MEMBERS, ScanOptions
from pipeline.store import bulk
from pipeline.store.objects import StoredFile

EXTENSIONS = (*tar_stream.EXTENSIONS, *zip_files.EXTENSIONS, ".parquet")
# Bump when the scan of an unchanged file would differ: kept scans of other versions are not used.
SCAN_VERSION = 4


def is_container(name: str) -> bool:
    """Whether a file holds many images, by its extension."""
    return name.lower().endswith(EXTENSIONS)


def is_sequential(url: str) -> bool:
    """Whether a container, or a large part of it, is read from its beginning whichever members are wanted."""
    return _is_parquet(url) or tar_stream.compression_of(url) is not None


def _is_parquet(url: str) -> bool:
    return url.lower().endswith(".parquet")


def scan(file: StoredFile, options: ScanOptions) -> pa.Table:
    """List the images of a container, in the order of the file; schema MEMBERS.

    Reads the whole file. Raises IgptError when the file is whole and a setting does not fit it.
    """
    if _is_parquet(file.url):
        return parquet_files.scan(file, options)
    is_zip = file.url.lower().endswith(zip_files.EXTENSIONS)
    return zip_files.scan(file, options) if is_zip else tar_files.scan(file, options)


def read_members(url: str, offsets: Sequence[int], lengths: Sequence[int]) -> Iterator[list[bytes]]:
    """Read members of a container, given by ascending offsets; yields them in that order, in batches.

    Raises FileNotFoundError or EOFError when the container is gone or another one.
    """
    if not is_sequential(url) and not url.lower().endswith(zip_files.EXTENSIONS):
        yield from tar_files.read(url, 0, offsets, lengths)
        return
    size = bulk.size(url)
    if size is None:
        raise FileNotFoundError(f"{url} is gone")
    if _is_parquet(url):
        yield from parquet_files.read(url, size, np.asarray(offsets, np.int64))
    elif url.lower().endswith(zip_files.EXTENSIONS):
        yield zip_files.read(url, size, offsets, lengths)
    else:
        yield from tar_files.read(url, size, offsets, lengths)


def to_bytes(members: pa.Table) -> bytes:
    """Write a scan as a Parquet file."""
    buffer = io.BytesIO()
    pq.write_table(members, buffer, compression="zstd")
    return buffer.getvalue()


def from_bytes(data: bytes) -> pa.Table:
    """Read a scan that to_bytes wrote. Raises ValueError when the file is something else."""
    table = pq.read_table(io.BytesIO(data))
    if table.schema != MEMBERS:
        raise ValueError("not a scan of a container")
    return table
