"""Read, list, put and delete objects by URL. bulk.py reads many at once, s3.py is the S3 filesystem.

botocore looks up credentials and endpoint (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, a profile, an instance role), so that
no secret passes through the functions of this project.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import fsspec

from pipeline.errors import IgptError, first_line
from pipeline.store import local_files
from pipeline.store.credentials import StoreKey
from pipeline.store.errors import RETRY_SECONDS, one_line_errors, with_retries
from pipeline.store.path_text import escape, from_text, to_text

Answer = TypeVar("Answer")

_SHORT_RETRY_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """One object of a listing: its URL, its size in bytes, and an etag that changes with its content."""

    url: str
    size: int
    etag: str
    modified: float
    """When it was last written, in seconds since 1970 by the store's clock; 0 where the store does not say."""


def join(base: str, *parts: str) -> str:
    """Append path segments to a URL or path."""
    return "/".join([base.rstrip("/"), *(part.strip("/") for part in parts)])


def name_of(url: str) -> str:
    """The last part of a URL or path, such as the name of a dataset."""
    return url.rstrip("/").rsplit("/", 1)[-1]


def protocol(url: str) -> str:
    """The scheme of a URL; `file` for a path."""
    return url.split("://", 1)[0] if "://" in url else "file"


def filesystem(url: str, *, patient: bool = True, key: StoreKey | None = None) -> Any:
    """Return the fsspec filesystem of a URL, on S3 with a key other than this process's if one is given.

    On S3, a patient filesystem makes a few attempts of its own before this module retries; the other makes one attempt
    of a few seconds.
    """
    try:
        if protocol(url) == "s3":
            from pipeline.store.s3 import BoundedS3FileSystem  # noqa: PLC0415 (not installed on every training machine)

            given = {} if key is None else {"key": key.access_key, "secret": key.secret_key}
            return BoundedS3FileSystem(patient=patient, **given)
        return fsspec.filesystem(protocol(url))
    except (ValueError, ImportError, TypeError, OSError) as error:
        raise IgptError(
            f"{url}: no way to read {protocol(url)}:// URLs ({first_line(error)}); use s3://, a local path or install "
            "its fsspec driver"
        ) from None


def absolute(url: str) -> str:
    """Make a local path absolute, so that it names the same file in every process; other URLs are unchanged.

    The path is text: bytes of it that are not UTF-8 are escaped (see path_text.py). Raises IgptError for what is no
    path.
    """
    if not url:
        raise IgptError("a path or URL is empty: give a URL such as s3://bucket/prefix or a path")
    if protocol(url) != "file":
        return url
    try:
        return to_text(str(local_path(escape(url)).resolve()))
    except (RuntimeError, ValueError) as error:  # a loop of links, the home of a user who is not there, a null byte
        raise IgptError(f"{url}: not a path ({error}); give another one") from None


def local_path(url: str) -> Path:
    """The path of a local file by its URL or path as text (see path_text.py)."""
    return Path(from_text(url.removeprefix("file://"))).expanduser()


def request(url: str, operation: Callable[[], Answer], *, seconds: float = RETRY_SECONDS) -> Answer:
    """Run an idempotent operation on the store of a URL: retry transient errors, raise others in one line."""
    with one_line_errors(url):
        return operation() if protocol(url) == "file" else with_retries(operation, seconds=seconds)


def _retry_seconds(patient: bool) -> float:
    return RETRY_SECONDS if patient else _SHORT_RETRY_SECONDS


def check_reachable(url: str) -> None:
    """Raise IgptError soon when the store of a URL does not respond, refuses the credentials or lacks the bucket."""
    if protocol(url) != "s3":
        return
    bucket = url.removeprefix("s3://").split("/", 1)[0]
    with one_line_errors(url):
        try:
            with_retries(
                lambda: filesystem(url, patient=False).call_s3("head_bucket", Bucket=bucket),
                seconds=_SHORT_RETRY_SECONDS,
            )
        except FileNotFoundError:
            raise FileNotFoundError("the specified bucket does not exist") from None


def list_files(url: str) -> Iterator[StoredFile]:
    """List every object below a URL, or the one object it names, sorted by name.

    Local links to folders are not followed.
    """
    fs = filesystem(url)
    if protocol(url) == "file":
        files = request(url, lambda: list(list_local(fs._strip_protocol(url), follow_links=False)))
        yield from sorted(files, key=lambda file: file.url)
        return
    entries = request(url, lambda: fs.find(fs._strip_protocol(url), detail=True))
    for path in sorted(entries):
        entry = entries[path]
        if entry.get("size") is None:  # web servers list names alone
            entry = request(url, partial(fs.info, path))
        yield stored_file(url, path, entry)


def list_local(
    folder: str,
    *,
    follow_links: bool,
    without: str | None = None,
    on_unusable: local_files.OnUnusable = local_files.ignore,
) -> Iterator[StoredFile]:
    """List the files below a path as local_files.walk does, as a stream. Raises OSError."""
    for file in local_files.walk(folder, follow_links=follow_links, without=without, on_unusable=on_unusable):
        yield StoredFile(url=file.path, size=file.size, etag=file.tag, modified=file.modified)


def stored_file(like: str, path: str, info: Mapping[str, Any]) -> StoredFile:
    """An entry of a filesystem's own listing, with the protocol of the URL `like`.

    Raises IgptError when the filesystem does not know its size.
    """
    if info["size"] is None:
        raise IgptError(f"{path}: the server does not tell its size; download it and give the file")
    scheme = protocol(like)
    modified = info.get("LastModified", info.get("mtime", info.get("last_modified", 0.0)))
    etag = info.get("ETag") or f"{info['size']}-{modified}"
    return StoredFile(
        url=path if scheme == "file" else f"{scheme}://{path.removeprefix(f'{scheme}://')}",
        size=int(info["size"]),
        etag=str(etag).strip('"'),
        modified=modified.timestamp() if isinstance(modified, datetime) else float(modified),
    )


def exists(url: str) -> bool:
    """Whether an object exists."""
    return size(url) is not None


def size(url: str) -> int | None:
    """Return the size of an object in bytes, or None when it does not exist."""
    try:
        if protocol(url) == "file":
            with one_line_errors(url):
                return local_path(url).stat().st_size
        return int(request(url, lambda: filesystem(url).info(url))["size"])
    except FileNotFoundError:
        return None


def read_bytes(url: str) -> bytes:
    """Read a whole object. Raises FileNotFoundError when it does not exist."""
    if protocol(url) == "file":
        with one_line_errors(url):
            return local_path(url).read_bytes()
    return request(url, lambda: filesystem(url).cat_file(url))


def write_bytes(url: str, data: bytes, *, patient: bool = True) -> None:
    """Put a whole object; readers see all of it or nothing.

    With `patient` false, gives up after a few seconds: for writes that are repeated anyway or not worth waiting for.
    """
    if protocol(url) == "file":
        with one_line_errors(url):
            local_files.write(filesystem(url)._strip_protocol(url), data)
    else:
        request(url, lambda: filesystem(url, patient=patient).pipe_file(url, data), seconds=_retry_seconds(patient))


def write_many(contents: Mapping[str, bytes]) -> None:
    """Put many small objects into one store, several at a time."""
    first = next(iter(contents), "")
    if protocol(first) == "file":
        for url, data in contents.items():
            write_bytes(url, data)
    else:
        request(first, lambda: filesystem(first).pipe(dict(contents)))


def arrow_filesystem(url: str, key: StoreKey | None = None) -> tuple[Any, str]:
    """The pyarrow filesystem and path of a URL: for Ray, whose own S3 uploads some servers refuse.

    It is sent to other processes, where it uses the key, if one is given and the URL is S3's.
    """
    from pyarrow.fs import FSSpecHandler, PyFileSystem  # noqa: PLC0415 (takes a fifth of a second, which few need)

    fs = filesystem(url, key=key)
    return PyFileSystem(FSSpecHandler(fs)), fs._strip_protocol(url)


def upload(local: Path, url: str, *, seconds: float = RETRY_SECONDS) -> None:
    """Put a local file, in parts when it is large; the object appears whole or not at all."""
    fs = filesystem(url)
    if protocol(url) == "file":
        fs.makedirs(fs._parent(url), exist_ok=True)

    def put() -> None:
        try:
            fs.put_file(str(local), url)
        except FileNotFoundError as error:
            if "upload does not exist" not in str(error):
                raise
            # The response to the end of a multipart upload was late, and botocore sent the request again.
            raise ConnectionError(f"the end of the upload was not confirmed: {error}") from None

    request(url, put, seconds=seconds)


def download(url: str, local: Path) -> None:
    """Fetch an object into a local file."""
    request(url, lambda: filesystem(url).get_file(url, str(local)))


def delete(url: str, *, patient: bool = True) -> None:
    """Remove an object, if it exists. With `patient` false, gives up after a few seconds."""
    try:
        request(url, lambda: filesystem(url, patient=patient).rm_file(url), seconds=_retry_seconds(patient))
    except FileNotFoundError:
        return


def delete_tree(url: str) -> None:
    """Remove everything below a URL, if anything exists."""
    fs = filesystem(url)
    paths = request(url, lambda: fs.find(fs._strip_protocol(url)))
    if paths:
        request(url, lambda: fs.rm(paths))
