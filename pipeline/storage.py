"""Open, list, put and conditionally create objects by URL: the only module that knows fsspec and s3fs.

Credentials and the endpoint come from where botocore looks for them (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, a profile,
an instance role), so that no secret passes through a function of this project.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import fsspec
from fsspec.utils import merge_offset_ranges
from pyarrow.fs import FSSpecHandler, PyFileSystem

from pipeline.errors import IgptError

# A read of neighbouring ranges fetches what lies between them when that is less than this many bytes: one request of
# 64 KiB more costs less than one request more.
_MAX_GAP_BYTES = 64 * 1024
_MAX_RANGE_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """One object of a listing: its URL, its size in bytes, and a tag that changes when its content does."""

    url: str
    size: int
    etag: str


class AlreadyExistsError(Exception):
    """A conditional create found the object in place."""


def join(base: str, *parts: str) -> str:
    """Append path segments to a URL or path."""
    return "/".join([base.rstrip("/"), *(part.strip("/") for part in parts)])


def _protocol(url: str) -> str:
    return url.split("://", 1)[0] if "://" in url else "file"


def filesystem(url: str, *, patient: bool = True) -> Any:
    """Return the fsspec filesystem of a URL.

    A patient one outlasts an outage of the store of about half a minute; the other gives up at once, to tell a user
    quickly that the store does not answer.
    """
    protocol = _protocol(url)
    options: dict[str, Any] = {}
    if protocol == "s3":
        options = {
            "use_listings_cache": False,  # other processes write too
            "config_kwargs": {
                "retries": {"mode": "standard", "max_attempts": 8 if patient else 1},
                "connect_timeout": 10 if patient else 3,
                "read_timeout": 60 if patient else 10,
                "max_pool_connections": 32,
                # Some servers answer a range with the checksum of the whole object; what must be right is verified
                # against the snapshot's own checksums.
                "response_checksum_validation": "when_required",
            },
        }
    try:
        fs = fsspec.filesystem(protocol, **options)
    except (ValueError, ImportError) as error:
        raise IgptError(
            f"{url}: no way to read {protocol}:// URLs ({error}); use s3://, a local path or install its fsspec driver"
        ) from None
    if protocol == "s3" and not patient:
        fs.retries = 1
    return fs


def absolute(url: str) -> str:
    """Make a local path absolute, so that every process means the same file; other URLs stay as they are."""
    return str(Path(url.removeprefix("file://")).expanduser().resolve()) if _protocol(url) == "file" else url


@contextmanager
def _one_line_errors(url: str) -> Iterator[None]:
    """Turn what an object store answers into one line that names the URL and the remedy."""
    try:
        yield
    except FileNotFoundError as error:
        if "specified bucket does not exist" in str(error).lower():  # a path may well have the word "bucket" in it
            raise IgptError(f"{url}: the bucket does not exist; create it or correct the URL") from None
        raise
    except PermissionError as error:
        if _protocol(url) != "s3":
            raise IgptError(f"{url}: permission denied; check the owner and mode of the path") from None
        raise IgptError(
            f"{url}: the object store refused the credentials ({_first_line(error)}); "
            "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY and the bucket's policy"
        ) from None
    except Exception as error:
        name = type(error).__name__
        if name in {"NoCredentialsError", "PartialCredentialsError"}:
            raise IgptError(
                f"{url}: no S3 credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run `igpt up`"
            ) from None
        if name in {"EndpointConnectionError", "ConnectTimeoutError", "ReadTimeoutError", "ClientConnectorError"}:
            raise IgptError(
                f"{url}: the object store does not answer ({_first_line(error)}); "
                "start it (`igpt up`) or set AWS_ENDPOINT_URL"
            ) from None
        raise


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def check_reachable(url: str) -> None:
    """Raise IgptError at once when the store of a URL does not answer, refuses the keys or has no such bucket."""
    if _protocol(url) != "s3":
        return
    bucket = url.removeprefix("s3://").split("/", 1)[0]
    with _one_line_errors(url):
        try:
            filesystem(url, patient=False).call_s3("head_bucket", Bucket=bucket)
        except FileNotFoundError:
            raise FileNotFoundError("the specified bucket does not exist") from None


def list_files(url: str) -> Iterator[StoredFile]:
    """List every object below a URL, or the one object it names, in the order of their names."""
    with _one_line_errors(url):
        fs = filesystem(url)
        found = fs.find(fs._strip_protocol(url), detail=True)
        for path in sorted(found):
            info = found[path]
            etag = info.get("ETag") or f"{info['size']}-{info.get('mtime')}"
            yield StoredFile(url=_with_protocol(url, path), size=int(info["size"]), etag=str(etag).strip('"'))


def _with_protocol(like: str, path: str) -> str:
    protocol = _protocol(like)
    return path if protocol == "file" else f"{protocol}://{path.removeprefix(f'{protocol}://')}"


def exists(url: str) -> bool:
    """Tell whether an object is there."""
    with _one_line_errors(url):
        return bool(filesystem(url).exists(url))


def size(url: str) -> int | None:
    """Return the size of an object in bytes, or None when it is not there."""
    with _one_line_errors(url):
        try:
            return int(filesystem(url).info(url)["size"])
        except FileNotFoundError:
            return None


def open_read(url: str, *, block_bytes: int = 8 * 1024 * 1024) -> IO[bytes]:
    """Open an object for reading with read-ahead."""
    with _one_line_errors(url):
        return filesystem(url).open(url, "rb", block_size=block_bytes, cache_type="readahead")


def read_bytes(url: str) -> bytes:
    """Read a whole object. Raises FileNotFoundError when it is not there."""
    with _one_line_errors(url):
        return filesystem(url).cat_file(url)


def read_many(urls: Sequence[str], starts: Sequence[int], lengths: Sequence[int]) -> list[bytes | Exception]:
    """Read byte ranges of many objects at once; neighbouring ranges of one object share a request.

    Returns the bytes of each range in order, or in its place the exception that reading it raised. A negative start
    stands for the whole object.
    """
    if not urls:
        return []
    fs = filesystem(urls[0])
    results: list[bytes | Exception] = [b""] * len(urls)
    whole = [i for i, start in enumerate(starts) if start < 0]
    if whole:
        # Ranges without limits rather than fs.cat, which takes a name such as "photo[1].png" for a pattern.
        answers = fs.cat_ranges([urls[i] for i in whole], [None] * len(whole), [None] * len(whole), on_error="return")
        for i, answer in zip(whole, answers, strict=True):
            results[i] = answer
    # S3 has no way to ask for no bytes.
    ranged = [i for i, start in enumerate(starts) if start >= 0 and lengths[i] > 0]
    if ranged:
        _read_ranges(fs, urls, starts, lengths, ranged, results)
    return results


def _read_ranges(
    fs: Any,
    urls: Sequence[str],
    starts: Sequence[int],
    lengths: Sequence[int],
    ranged: list[int],
    results: list[bytes | Exception],
) -> None:
    """Fill results[i] for every i of `ranged`, from merged reads."""
    ranged = sorted(ranged, key=lambda i: (urls[i], starts[i]))
    merged_urls, merged_starts, merged_ends = merge_offset_ranges(
        [urls[i] for i in ranged],
        [starts[i] for i in ranged],
        [starts[i] + lengths[i] for i in ranged],
        max_gap=_MAX_GAP_BYTES,
        max_block=_MAX_RANGE_BYTES,
        sort=False,
    )
    blocks = fs.cat_ranges(merged_urls, merged_starts, merged_ends, on_error="return")
    block = 0
    for i in ranged:
        while merged_urls[block] != urls[i] or not merged_starts[block] <= starts[i] < merged_ends[block] + 1:
            block += 1
        data = blocks[block]
        if isinstance(data, Exception):
            results[i] = data
            continue
        begin = starts[i] - merged_starts[block]
        results[i] = bytes(data[begin : begin + lengths[i]])


def write_bytes(url: str, data: bytes) -> None:
    """Put a whole object; readers see all of it or nothing."""
    with _one_line_errors(url):
        if _protocol(url) == "file":
            _write_local(filesystem(url)._strip_protocol(url), data, exclusive=False)
        else:
            filesystem(url).pipe_file(url, data)


def write_many(contents: Mapping[str, bytes]) -> None:
    """Put many small objects of one store, several at a time."""
    if contents:
        first = next(iter(contents))
        with _one_line_errors(first):
            fs = filesystem(first)
            if _protocol(first) == "file":
                for url, data in contents.items():
                    _write_local(fs._strip_protocol(url), data, exclusive=False)
            else:
                fs.pipe(dict(contents))


def create_bytes(url: str, data: bytes) -> None:
    """Put an object that must not be there yet. Raises AlreadyExistsError when it is.

    The condition is checked by the store where it has conditional writes (AWS S3 and most others); on one that ignores
    the condition (`rclone serve s3`) the object is looked for before and compared after.
    """
    if exists(url):
        raise AlreadyExistsError(url)
    with _one_line_errors(url):
        if _protocol(url) == "file":
            _write_local(filesystem(url)._strip_protocol(url), data, exclusive=True)
            return
        try:
            filesystem(url).pipe_file(url, data, mode="create")
        except FileExistsError:
            raise AlreadyExistsError(url) from None
    if read_bytes(url) != data:
        raise AlreadyExistsError(url)


def _write_local(path: str, data: bytes, *, exclusive: bool) -> None:
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if exclusive:
            try:
                os.link(partial, target)  # unlike a rename, a link refuses to replace
            except FileExistsError:
                raise AlreadyExistsError(path) from None
        else:
            partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def arrow_filesystem(url: str) -> tuple[Any, str]:
    """The URL's filesystem as a pyarrow one, and the path in it: for Ray, whose own S3 uploads some servers refuse."""
    fs = filesystem(url)
    return PyFileSystem(FSSpecHandler(fs)), fs._strip_protocol(url)


def upload(local: Path, url: str) -> None:
    """Put a local file, in parts when it is large; the object appears whole or not at all."""
    with _one_line_errors(url):
        fs = filesystem(url)
        if _protocol(url) == "file":
            fs.makedirs(fs._parent(url), exist_ok=True)
        fs.put_file(str(local), url)


def download(url: str, local: Path) -> None:
    """Fetch an object into a local file."""
    with _one_line_errors(url):
        filesystem(url).get_file(url, str(local))


def delete_tree(url: str) -> None:
    """Remove everything below a URL; nothing there is no error."""
    with _one_line_errors(url):
        fs = filesystem(url)
        found = fs.find(fs._strip_protocol(url))
        if found:
            fs.rm(found)
