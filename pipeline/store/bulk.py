"""List and read many objects: S3 through its cheapest clients, other stores through fsspec.

Whole S3 objects are read with obstore, whose GET costs a tenth of s3fs's; ranges with boto3, because obstore refuses a
range that the server answers with status 200 instead of 206, as `rclone serve s3` does. With s3fs, reading a 110 KB
photograph from a tar costs 0.2 ms of processor time, and slows its decoder down by as much again.
"""

import io
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

import boto3
import obstore
from botocore.config import Config
from botocore.exceptions import ClientError
from botocore.session import get_session
from fsspec.utils import merge_offset_ranges
from obstore.exceptions import BaseError, InvalidPathError, PermissionDeniedError, UnauthenticatedError
from obstore.store import S3Store

from pipeline.errors import IgptError, first_line
from pipeline.store import local_files, objects
from pipeline.store.errors import (
    RETRY_SECONDS,
    ShortReadError,
    is_transient,
    one_line_errors,
    with_retries,
)
from pipeline.store.objects import StoredFile

# Ranges with a gap of at most this many bytes are read in one request: 64 KiB more cost less than one more request.
_MAX_GAP_BYTES = 64 * 1024
_MAX_RANGE_BYTES = 16 * 1024 * 1024
_BLOCK_BYTES = 8 * 1024 * 1024
_REQUESTS_AT_ONCE = 8
_OBJECTS_PER_PAGE = 10_000
_CREDENTIALS_VALID_FOR = timedelta(minutes=5)


@dataclass(frozen=True, kw_only=True)
class ReadObject:
    """A whole object, and its etag when it was read."""

    data: bytes
    etag: str


def list_files(url: str) -> Iterator[StoredFile]:
    """List every object below a URL, or the one object it names, as a stream in no particular order.

    Follows links to folders, unlike objects.list_files: images may be spread over several disks.
    """
    with one_line_errors(url):
        match objects.protocol(url):
            case "s3":
                yield from _list_s3(url)
            case "file":
                yield from objects.list_local(objects.absolute(url), follow_links=True)
            case _:
                yield from objects.list_files(url)


def _list_s3(url: str) -> Iterator[StoredFile]:
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    after = ""  # the last object listed; the listing resumes behind it when a page fails
    began = time.monotonic()
    while True:
        try:
            pages = obstore.list(_s3_store(bucket), prefix or None, offset=after or None, chunk_size=_OBJECTS_PER_PAGE)
            for page in pages:
                for entry in page:
                    after = entry["path"]
                    yield _s3_file(bucket, entry)
                began = time.monotonic()
            break
        except InvalidPathError:
            # obstore does not accept every key as a path, a//b for one. s3fs does, but holds the whole listing.
            yield from (file for file in objects.list_files(url) if _s3_path(file.url)[1] > after)
            break
        except BaseError as error:
            if _is_refusal(error):
                raise PermissionError(first_line(error)) from None
            if not is_transient(error) or time.monotonic() - began > RETRY_SECONDS:
                raise
            time.sleep(1)
    if not after and prefix:
        yield from objects.list_files(url)  # the one object


def _is_refusal(error: BaseError) -> bool:
    """Whether the store refused the credentials; obstore has no error type for that when it lists."""
    return isinstance(error, PermissionDeniedError | UnauthenticatedError) or "status code: 403" in str(error)


def _s3_path(url: str) -> tuple[str, str]:
    bucket, _, path = url.removeprefix("s3://").partition("/")
    return bucket, path


def _s3_file(bucket: str, entry: Any) -> StoredFile:
    return StoredFile(
        url=f"s3://{bucket}/{entry['path']}",
        size=entry["size"],
        etag=(entry["e_tag"] or "").strip('"') or f"{entry['size']}-{entry['last_modified'].timestamp()}",
        modified=entry["last_modified"].timestamp(),
    )


@lru_cache(maxsize=16)
def _s3_store(bucket: str) -> S3Store:
    """obstore's client for a bucket, with botocore's endpoint, credentials and certificates."""
    session = get_session()
    credentials = session.get_credentials()
    if credentials is None:
        raise IgptError(
            f"s3://{bucket}: no S3 credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run `igpt up`"
        )
    endpoint, region = _endpoint(bucket)

    def current_credentials() -> Any:
        frozen = credentials.get_frozen_credentials()  # botocore refreshes those that expire
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": datetime.now(UTC) + _CREDENTIALS_VALID_FOR,
        }

    options: Any = {"allow_http": endpoint.startswith("http://"), "timeout": "5min", "read_timeout": "30s"}
    certificates = session.get_config_variable("ca_bundle")
    if certificates:
        options["root_certificate"] = Path(certificates).read_bytes()
    return S3Store(
        bucket,
        endpoint=endpoint,
        region=region,
        client_options=options,
        retry_config={"max_retries": 3, "retry_timeout": timedelta(seconds=30)},
        credential_provider=current_credentials,
    )


@lru_cache(maxsize=1)
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_REQUESTS_AT_ONCE, thread_name_prefix="read")


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
    return list(_threads().map(read, urls, sizes))


def _local(url: str) -> ReadObject:
    with Path(url).open("rb") as file:
        data = file.read()
        return ReadObject(data=data, etag=local_files.tag(os.fstat(file.fileno())))


def _whole(url: str, size: int) -> ReadObject:
    """Read an object, without retries."""
    if objects.protocol(url) == "s3":
        bucket, path = _s3_path(url)
        try:
            response = obstore.get(_s3_store(bucket), path)
            etag = (response.meta["e_tag"] or "").strip('"')
            data = bytes(response.bytes())
            expected = response.meta["size"]
        except InvalidPathError:
            return _whole_by_fsspec(url, size)
        except BaseError as error:
            if _is_refusal(error):
                raise PermissionError(first_line(error)) from None
            raise
        if len(data) != expected:
            raise ShortReadError(f"read {len(data)} of {expected} bytes")
        return ReadObject(data=data, etag=etag)
    return _whole_by_fsspec(url, size)


def _whole_by_fsspec(url: str, size: int) -> ReadObject:
    fs = objects.filesystem(url)
    data = fs.cat_file(url)
    file = objects.stored_file(url, fs._strip_protocol(url), fs.info(url))
    if len(data) != file.size:
        raise ShortReadError(f"read {len(data)} of {size} bytes")
    return ReadObject(data=data, etag=file.etag)


def read_range(url: str, start: int, stop: int) -> bytes:
    """Read the bytes from start up to, but not including, stop. Raises FileNotFoundError when there is no object."""

    def read() -> bytes:
        if objects.protocol(url) == "s3":
            data = _s3_range(url, start, stop)
        else:
            data = objects.filesystem(url).cat_file(url, start=start, end=stop)
        if len(data) != stop - start:
            raise ShortReadError(f"read {len(data)} of {stop - start} bytes")
        return data

    return objects.request(url, read)


def _s3_range(url: str, start: int, stop: int) -> bytes:
    bucket, path = _s3_path(url)
    try:
        response = _boto_client().get_object(Bucket=bucket, Key=path, Range=f"bytes={start}-{stop - 1}")
        return response["Body"].read()
    except ClientError as error:
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        known = {403: PermissionError, 404: FileNotFoundError}.get(status or 0)
        if known is None:
            raise
        raise known(str(error)) from None


@lru_cache(maxsize=1)
def _boto_client() -> Any:
    return boto3.session.Session().client(
        "s3",
        config=Config(
            retries={"mode": "standard", "max_attempts": 3},
            connect_timeout=10,
            read_timeout=30,
            max_pool_connections=2 * _REQUESTS_AT_ONCE,
            # Some servers send the checksum of the whole object with a range; members have their own checksums.
            response_checksum_validation="when_required",
        ),
    )


@lru_cache(maxsize=16)
def _endpoint(bucket: str) -> tuple[str, str]:
    """Endpoint URL and region of a bucket."""
    fs = objects.filesystem(f"s3://{bucket}")
    fs.connect()
    return fs.s3.meta.endpoint_url, fs.s3.meta.region_name or "us-east-1"


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
    blocks = list(_threads().map(lambda start, stop: read_range(url, start, stop), merged_starts, merged_stops))
    block = 0
    for i in wanted:
        while not merged_starts[block] <= starts[i] < merged_stops[block]:
            block += 1
        begin = starts[i] - merged_starts[block]
        contents[i] = blocks[block][begin : begin + lengths[i]]
    return contents


class BlockReader(io.RawIOBase):
    """An object as a seekable file, read in large blocks; the following block is fetched ahead."""

    def __init__(self, url: str, size: int) -> None:
        self._url, self._size, self._position = url, size, 0
        self._block, self._block_start = b"", 0
        self._ahead: tuple[int, Future[bytes]] | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = base + offset
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        """Read `size` bytes, or up to the end without one; fewer only at the end."""
        stop = self._size if size is None or size < 0 else min(self._position + size, self._size)
        parts = []
        while self._position < stop:
            if not self._block_start <= self._position < self._block_start + len(self._block):
                self._load(self._position - self._position % _BLOCK_BYTES)
            begin = self._position - self._block_start
            part = self._block[begin : begin + stop - self._position]
            parts.append(part)
            self._position += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _load(self, start: int) -> None:
        if self._ahead is not None and self._ahead[0] == start:
            self._block = self._ahead[1].result()
        else:
            self._block = self._fetch(start)
        self._block_start = start
        following = start + _BLOCK_BYTES
        self._ahead = (following, _threads().submit(self._fetch, following)) if following < self._size else None

    def _fetch(self, start: int) -> bytes:
        return read_range(self._url, start, min(start + _BLOCK_BYTES, self._size))


def sizes_below(url: str) -> dict[str, int]:
    """Size in bytes of every object below a URL, by URL."""
    return {file.url: file.size for file in list_files(url)}
