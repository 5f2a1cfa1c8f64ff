"""List and read many objects at once, from any store. s3_reads.py has the requests to S3."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

from fsspec.utils import merge_offset_ranges

from pipeline.store import local_files, objects, s3_reads
from pipeline.store.errors import ShortReadError, one_line_errors, with_retries
from pipeline.store.objects import StoredFile
from pipeline.store.s3_reads import ReadObject

# Ranges with a gap of at most this many bytes are read in one request: 64 KiB more cost less than one more request.
_MAX_GAP_BYTES = 64 * 1024
_MAX_RANGE_BYTES = 16 * 1024 * 1024


def list_files(
    url: str, *, without: str | None = None, on_unusable: local_files.OnUnusable = local_files.ignore
) -> Iterator[StoredFile]:
    """List every object below a URL, or the one object it names, as a stream in no particular order.

    Follows links to folders, unlike objects.list_files: images may be spread over several disks. What lies below the
    URL `without` is left out. `on_unusable` is called for local links that lead nowhere, pipes, sockets and devices.
    """
    with one_line_errors(url):
        if objects.protocol(url) == "file":
            folder = objects.absolute(url)
            yield from objects.list_local(folder, follow_links=True, without=without, on_unusable=on_unusable)
            return
        below = None if without is None else f"{without.rstrip('/')}/"
        files = s3_reads.list_files(url) if objects.protocol(url) == "s3" else objects.list_files(url)
        yield from (file for file in files if below is None or not file.url.startswith(below))


@lru_cache(maxsize=1)
def threads() -> ThreadPoolExecutor:
    """The threads of this process's parallel reads."""
    return ThreadPoolExecutor(s3_reads.REQUESTS_AT_ONCE, thread_name_prefix="read")


def read_objects(urls: Sequence[str], sizes: Sequence[int]) -> list[ReadObject | Exception]:
    """Read whole objects in parallel; for one that cannot be read, the exception is returned instead.

    `sizes` are those of the listing: a shorter object is read again, in case the response was cut off.
    """

    def read(url: str, size: int) -> ReadObject | Exception:
        try:
            with one_line_errors(url):
                return with_retries(lambda: _whole(url, size)) if objects.protocol(url) != "file" else _local(url)
        except Exception as error:  # noqa: BLE001 (returned to the caller)
            return error

    if len(urls) == 1 or objects.protocol(next(iter(urls), "")) == "file":
        return [read(url, size) for url, size in zip(urls, sizes, strict=True)]
    return list(threads().map(read, urls, sizes))


def _local(url: str) -> ReadObject:
    with objects.local_path(url).open("rb") as file:
        data = file.read()
        return ReadObject(data=data, etag=local_files.tag(os.fstat(file.fileno())))


def _whole(url: str, size: int) -> ReadObject:
    """Read an object, without retries."""
    if objects.protocol(url) == "s3" and (whole := s3_reads.read_object(url)) is not None:
        return whole
    fs = objects.filesystem(url)
    data = fs.cat_file(url)
    file = objects.stored_file(url, fs._strip_protocol(url), fs.info(url))
    if len(data) != file.size:
        raise ShortReadError(f"read {len(data)} of {size} bytes")
    return ReadObject(data=data, etag=file.etag)


def size(url: str) -> int | None:
    """The size of an object in bytes, or None when it does not exist; of any key, unlike objects.size."""
    if objects.protocol(url) != "s3":
        return objects.size(url)
    with one_line_errors(url):
        file = s3_reads.head(url)
        return None if file is None else file.size


def read_range(url: str, start: int, stop: int) -> bytes:
    """Read the bytes from start up to, but not including, stop. Raises FileNotFoundError when there is no object."""

    def read() -> bytes:
        if objects.protocol(url) == "s3":
            data = s3_reads.read_range(url, start, stop)
        elif objects.protocol(url) == "file":
            with objects.local_path(url).open("rb") as file:
                file.seek(start)
                data = file.read(stop - start)
        else:
            data = objects.filesystem(url).cat_file(url, start=start, end=stop)
            if len(data) > stop - start:
                data = data[start:stop]  # a web server that knows no ranges sends all
        if len(data) != stop - start:
            raise ShortReadError(f"read {len(data)} of {stop - start} bytes")
        return data

    return objects.request(url, read)


def read_ranges(url: str, starts: Sequence[int], lengths: Sequence[int]) -> list[bytes]:
    """Read byte ranges of one object, given in ascending order; neighbouring ranges share a request."""
    wanted = [i for i, length in enumerate(lengths) if length > 0]  # S3 cannot request an empty range
    contents = [b""] * len(starts)
    if not wanted:
        return contents
    _, merged_starts, merged_stops = merge_offset_ranges(
        [url] * len(wanted),
        [starts[i] for i in wanted],
        [starts[i] + lengths[i] for i in wanted],
        max_gap=_MAX_GAP_BYTES,
        max_block=_MAX_RANGE_BYTES,
        sort=False,
    )
    blocks = list(threads().map(lambda start, stop: read_range(url, start, stop), merged_starts, merged_stops))
    block = 0
    for i in wanted:
        while not merged_starts[block] <= starts[i] < merged_stops[block]:
            block += 1
        begin = starts[i] - merged_starts[block]
        contents[i] = blocks[block][begin : begin + lengths[i]]
    return contents


def sizes_below(url: str) -> dict[str, int]:
    """Size in bytes of every object below a URL, by URL."""
    return {file.url: file.size for file in list_files(url)}
