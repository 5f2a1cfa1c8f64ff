"""Open, list, put and conditionally create objects by URL: with bulk.py the only module that knows object stores.

Credentials and the endpoint come from where botocore looks for them (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, a profile,
an instance role), so that no secret passes through a function of this project.
"""

import os
import random
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any, TypeVar

import fsspec
from pyarrow.fs import FSSpecHandler, PyFileSystem

from pipeline.errors import IgptError
from pipeline.store_errors import PATIENCE_SECONDS, one_line_errors, patiently

Answer = TypeVar("Answer")

# A claim to create an object holds this long; who made it has created the object by then, or has died.
_CLAIM_SECONDS = 15.0


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """One object of a listing: its URL, its size in bytes, and a tag that changes when its content does."""

    url: str
    size: int
    etag: str
    modified: float
    """When it was last written, in seconds since 1970 by the store's clock; 0 where the store does not say."""


class AlreadyExistsError(Exception):
    """A conditional create found the object in place."""


def join(base: str, *parts: str) -> str:
    """Append path segments to a URL or path."""
    return "/".join([base.rstrip("/"), *(part.strip("/") for part in parts)])


def protocol(url: str) -> str:
    """The scheme of a URL; `file` for a path."""
    return url.split("://", 1)[0] if "://" in url else "file"


def filesystem(url: str, *, patient: bool = True) -> Any:
    """Return the fsspec filesystem of a URL.

    A patient one tries a failing request a few times before this module does; the other gives up at once, to tell a
    user quickly that the store does not answer.
    """
    options: dict[str, Any] = {}
    if protocol(url) == "s3":
        options = {
            "use_listings_cache": False,  # other processes write too
            "config_kwargs": {
                "retries": {"mode": "standard", "max_attempts": 4 if patient else 1},
                "connect_timeout": 10 if patient else 3,
                "read_timeout": 30 if patient else 10,
                "max_pool_connections": 32,
                # Some servers answer a range with the checksum of the whole object; what must be right is verified
                # against the snapshot's own checksums.
                "response_checksum_validation": "when_required",
            },
        }
    try:
        fs = fsspec.filesystem(protocol(url), **options)
    except (ValueError, ImportError) as error:
        raise IgptError(
            f"{url}: no way to read {protocol(url)}:// URLs ({error}); use s3://, a local path or install its fsspec "
            "driver"
        ) from None
    if protocol(url) == "s3" and not patient:
        fs.retries = 1
    return fs


def absolute(url: str) -> str:
    """Make a local path absolute, so that every process means the same file; other URLs stay as they are."""
    return str(Path(url.removeprefix("file://")).expanduser().resolve()) if protocol(url) == "file" else url


def ask(url: str, request: Callable[[], Answer], *, seconds: float = PATIENCE_SECONDS) -> Answer:
    """Make an idempotent request to the store of a URL: transient faults tried again, the rest in one line."""
    with one_line_errors(url):
        return request() if protocol(url) == "file" else patiently(request, seconds=seconds)


def check_reachable(url: str) -> None:
    """Raise IgptError at once when the store of a URL does not answer, refuses the keys or has no such bucket."""
    if protocol(url) != "s3":
        return
    bucket = url.removeprefix("s3://").split("/", 1)[0]
    with one_line_errors(url):
        try:
            patiently(lambda: filesystem(url, patient=False).call_s3("head_bucket", Bucket=bucket), seconds=5)
        except FileNotFoundError:
            raise FileNotFoundError("the specified bucket does not exist") from None


def list_files(url: str) -> Iterator[StoredFile]:
    """List every object below a URL, or the one object it names, in the order of their names."""
    fs = filesystem(url)
    found = ask(url, lambda: fs.find(fs._strip_protocol(url), detail=True))
    for path in sorted(found):
        yield stored_file(url, path, found[path])


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


def open_read(url: str, *, block_bytes: int = 8 * 1024 * 1024) -> IO[bytes]:
    """Open an object for reading with read-ahead."""
    return ask(url, lambda: filesystem(url).open(url, "rb", block_size=block_bytes, cache_type="readahead"))


def read_bytes(url: str) -> bytes:
    """Read a whole object. Raises FileNotFoundError when it is not there."""
    return ask(url, lambda: filesystem(url).cat_file(url))


def write_bytes(url: str, data: bytes, *, seconds: float = PATIENCE_SECONDS) -> None:
    """Put a whole object; readers see all of it or nothing."""
    if protocol(url) == "file":
        with one_line_errors(url):
            _write_local(filesystem(url)._strip_protocol(url), data, exclusive=False)
    else:
        ask(url, lambda: filesystem(url).pipe_file(url, data), seconds=seconds)


def write_many(contents: Mapping[str, bytes]) -> None:
    """Put many small objects of one store, several at a time."""
    first = next(iter(contents), "")
    if protocol(first) == "file":
        for url, data in contents.items():
            write_bytes(url, data)
    else:
        ask(first, lambda: filesystem(first).pipe(dict(contents)))


def create_bytes(url: str, data: bytes) -> None:
    """Put an object that must not be there yet. Raises AlreadyExistsError when it is.

    Of two creators at once one wins: by the store's condition where it has conditional writes (AWS S3 and most others),
    and by a claim beside the object on one that ignores the condition (`rclone serve s3`). Who sees no claim but his
    own after writing it may create; the other, whose claim came later, sees the first.
    """
    if exists(url):
        raise AlreadyExistsError(url)
    if protocol(url) == "file":
        with one_line_errors(url):
            _write_local(filesystem(url)._strip_protocol(url), data, exclusive=True)
        return
    claims = f"{url}.claims"
    mine = join(claims, uuid.uuid4().hex)
    try:
        while True:
            write_bytes(mine, b"")
            seen = {file.url: file.modified for file in list_files(claims)}
            held = [at for claim, at in seen.items() if claim != mine and at > seen.get(mine, at) - _CLAIM_SECONDS]
            if exists(url):
                raise AlreadyExistsError(url)
            if mine in seen and not held:
                break
            delete(mine)
            time.sleep(random.uniform(0.2, 2.0))
        try:
            ask(url, lambda: filesystem(url).pipe_file(url, data, mode="create"))
        except FileExistsError:
            # Ours, where the answer to a first try was lost.
            if read_bytes(url) != data:
                raise AlreadyExistsError(url) from None
        if read_bytes(url) != data:
            raise AlreadyExistsError(url)
    finally:
        delete(mine)


def _write_local(path: str, data: bytes, *, exclusive: bool) -> None:
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}.partial")
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


def upload(local: Path, url: str, *, seconds: float = PATIENCE_SECONDS) -> None:
    """Put a local file, in parts when it is large; the object appears whole or not at all."""
    fs = filesystem(url)
    if protocol(url) == "file":
        fs.makedirs(fs._parent(url), exist_ok=True)
    ask(url, lambda: fs.put_file(str(local), url), seconds=seconds)


def download(url: str, local: Path) -> None:
    """Fetch an object into a local file."""
    ask(url, lambda: filesystem(url).get_file(url, str(local)))


def delete(url: str) -> None:
    """Remove an object; nothing there is no error."""
    try:
        ask(url, lambda: filesystem(url).rm_file(url))
    except FileNotFoundError:
        return


def delete_tree(url: str) -> None:
    """Remove everything below a URL; nothing there is no error."""
    fs = filesystem(url)
    found = ask(url, lambda: fs.find(fs._strip_protocol(url)))
    if found:
        ask(url, lambda: fs.rm(found))
