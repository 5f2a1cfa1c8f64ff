"""Read, list, put and delete objects by URL; bulk.py does so for many at once, s3.py is S3.

Credentials and the endpoint come from where botocore looks for them (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, a profile,
an instance role), so that no secret passes through a function of this project.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import fsspec
from pyarrow.fs import FSSpecHandler, PyFileSystem

from pipeline.errors import IgptError
from pipeline.store import local_files
from pipeline.store.errors import PATIENCE_SECONDS, one_line_errors, patiently

Answer = TypeVar("Answer")

_IMPATIENCE_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """One object of a listing: its URL, its size in bytes, and a tag that changes when its content does."""

    url: str
    size: int
    etag: str
    modified: float
    """When it was last written, in seconds since 1970 by the store's clock; 0 where the store does not say."""


def join(base: str, *parts: str) -> str:
    """Append path segments to a URL or path."""
    return "/".join([base.rstrip("/"), *(part.strip("/") for part in parts)])


def protocol(url: str) -> str:
    """The scheme of a URL; `file` for a path."""
    return url.split("://", 1)[0] if "://" in url else "file"


def filesystem(url: str, *, patient: bool = True) -> Any:
    """Return the fsspec filesystem of a URL.

    A patient one tries a failing request a few times before this module does, the other once and for some seconds;
    of other stores than S3 there is one kind.
    """
    try:
        if protocol(url) == "s3":
            from pipeline.store.s3 import BoundedS3FileSystem  # noqa: PLC0415 (not on every machine that trains)

            return BoundedS3FileSystem(patient=patient)
        return fsspec.filesystem(protocol(url))
    except (ValueError, ImportError) as error:
        raise IgptError(
            f"{url}: no way to read {protocol(url)}:// URLs ({error}); use s3://, a local path or install its fsspec "
            "driver"
        ) from None


def absolute(url: str) -> str:
    """Make a local path absolute, so that every process means the same file; other URLs stay as they are."""
    return str(Path(url.removeprefix("file://")).expanduser().resolve()) if protocol(url) == "file" else url


def ask(url: str, request: Callable[[], Answer], *, seconds: float = PATIENCE_SECONDS) -> Answer:
    """Make an idempotent request to the store of a URL: transient faults tried again, the rest in one line."""
    with one_line_errors(url):
        return request() if protocol(url) == "file" else patiently(request, seconds=seconds)


def _patience(patient: bool) -> float:
    return PATIENCE_SECONDS if patient else _IMPATIENCE_SECONDS


def check_reachable(url: str) -> None:
    """Raise IgptError at once when the store of a URL does not answer, refuses the keys or has no such bucket."""
    if protocol(url) != "s3":
        return
    bucket = url.removeprefix("s3://").split("/", 1)[0]
    with one_line_errors(url):
        try:
            patiently(
                lambda: filesystem(url, patient=False).call_s3("head_bucket", Bucket=bucket),
                seconds=_IMPATIENCE_SECONDS,
            )
        except FileNotFoundError:
            raise FileNotFoundError("the specified bucket does not exist") from None


def list_files(url: str) -> Iterator[StoredFile]:
    """List every object below a URL, or the one object it names, in the order of their names.

    On a disk, links to folders are not entered.
    """
    fs = filesystem(url)
    if protocol(url) == "file":
        files = ask(url, lambda: list(list_local(fs._strip_protocol(url), follow_links=False)))
        yield from sorted(files, key=lambda file: file.url)
        return
    found = ask(url, lambda: fs.find(fs._strip_protocol(url), detail=True))
    for path in sorted(found):
        yield stored_file(url, path, found[path])


def list_local(folder: str, *, follow_links: bool) -> Iterator[StoredFile]:
    """List the files below a path as local_files.walk finds them, without holding the listing. Raises OSError."""
    for file in local_files.walk(folder, follow_links=follow_links):
        yield StoredFile(url=file.path, size=file.size, etag=file.tag, modified=file.modified)


def stored_file(like: str, path: str, info: Mapping[str, Any]) -> StoredFile:
    """An object of a filesystem's own listing, with a URL such as `like`."""
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
    """Tell whether an object is there."""
    return size(url) is not None


def size(url: str) -> int | None:
    """Return the size of an object in bytes, or None when it is not there."""
    try:
        return int(ask(url, lambda: filesystem(url).info(url))["size"])
    except FileNotFoundError:
        return None


def read_bytes(url: str) -> bytes:
    """Read a whole object. Raises FileNotFoundError when it is not there."""
    return ask(url, lambda: filesystem(url).cat_file(url))


def write_bytes(url: str, data: bytes, *, patient: bool = True) -> None:
    """Put a whole object; readers see all of it or nothing.

    An impatient one gives up after some seconds: for what is tried again anyway, or is not worth waiting for.
    """
    if protocol(url) == "file":
        with one_line_errors(url):
            local_files.write(filesystem(url)._strip_protocol(url), data)
    else:
        ask(url, lambda: filesystem(url, patient=patient).pipe_file(url, data), seconds=_patience(patient))


def write_many(contents: Mapping[str, bytes]) -> None:
    """Put many small objects of one store, several at a time."""
    first = next(iter(contents), "")
    if protocol(first) == "file":
        for url, data in contents.items():
            write_bytes(url, data)
    else:
        ask(first, lambda: filesystem(first).pipe(dict(contents)))


def arrow_filesystem(url: str) -> tuple[Any, str]:
    """The URL's filesystem as a pyarrow one, and the path in it: for Ray, whose own S3 uploads some servers refuse."""
    fs = filesystem(url)
    return PyFileSystem(FSSpecHandler(fs)), fs._strip_protocol(url)


def upload(local: Path, url: str, *, seconds: float = PATIENCE_SECONDS) -> None:
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
            # The answer to the end of a multipart upload was late, and botocore has asked once more.
            raise ConnectionError(f"the end of the upload was not confirmed: {error}") from None

    ask(url, put, seconds=seconds)


def download(url: str, local: Path) -> None:
    """Fetch an object into a local file."""
    ask(url, lambda: filesystem(url).get_file(url, str(local)))


def delete(url: str, *, patient: bool = True) -> None:
    """Remove an object; nothing there is no error. An impatient one gives up after some seconds."""
    try:
        ask(url, lambda: filesystem(url, patient=patient).rm_file(url), seconds=_patience(patient))
    except FileNotFoundError:
        return


def delete_tree(url: str) -> None:
    """Remove everything below a URL; nothing there is no error."""
    fs = filesystem(url)
    found = ask(url, lambda: fs.find(fs._strip_protocol(url)))
    if found:
        ask(url, lambda: fs.rm(found))
