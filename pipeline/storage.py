"""Read, list, put and conditionally create objects by URL; bulk.py does so for many at once, s3_filesystem.py is S3.

Credentials and the endpoint come from where botocore looks for them (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, a profile,
an instance role), so that no secret passes through a function of this project.
"""

import os
import random
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import fsspec
from pyarrow.fs import FSSpecHandler, PyFileSystem

from pipeline import local_files
from pipeline.errors import IgptError
from pipeline.store_errors import PATIENCE_SECONDS, one_line_errors, patiently

Answer = TypeVar("Answer")

_IMPATIENCE_SECONDS = 5.0
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

    A patient one tries a failing request a few times before this module does, the other once and for some seconds;
    of other stores than S3 there is one kind.
    """
    try:
        if protocol(url) == "s3":
            from pipeline.s3_filesystem import BoundedS3FileSystem  # noqa: PLC0415 (not on every machine that trains)

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
            _write_local(filesystem(url)._strip_protocol(url), data, exclusive=False)
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


def create_bytes(url: str, data: bytes) -> None:
    """Put an object that must not be there yet. Raises AlreadyExistsError when it is.

    Of two creators at once one wins: by the store's condition where it has conditional writes (AWS S3 and most others),
    and by a claim beside the object on one that ignores the condition (`rclone serve s3`). Who sees no claim but his
    own after writing it may create as long as others heed it; the other, whose claim came later, sees the first.
    """
    if exists(url):
        raise AlreadyExistsError(url)
    if protocol(url) == "file":
        with one_line_errors(url):
            _write_local(filesystem(url)._strip_protocol(url), data, exclusive=True)
        return
    claims = f"{url}.claims"
    mine = join(claims, uuid.uuid4().hex)
    tried = False
    try:
        while True:
            heeded_until = time.monotonic() + 2 / 3 * _CLAIM_SECONDS
            write_bytes(mine, b"")
            seen = {file.url: file.modified for file in list_files(claims)}
            held = [at for claim, at in seen.items() if claim != mine and at > seen.get(mine, at) - _CLAIM_SECONDS]
            if exists(url):
                break
            if mine in seen and not held:
                tried = True
                with suppress(_ClaimExpiredError):
                    ask(url, partial(_create_while_claimed, url, data, heeded_until))
                    break
            delete(mine)
            time.sleep(random.uniform(0.2, 2.0))
        # Ours even if it was there already, where the answer to a try was lost.
        with suppress(FileNotFoundError):
            if tried and read_bytes(url) == data:
                return
        raise AlreadyExistsError(url)
    finally:
        delete(mine)


class _ClaimExpiredError(Exception):
    """Others no longer heed the claim."""


def _create_while_claimed(url: str, data: bytes, heeded_until: float) -> None:
    """One try to create an object; not when it comes late. The answer is no proof: see who reads it."""
    if time.monotonic() > heeded_until:
        raise _ClaimExpiredError
    with suppress(FileExistsError):
        filesystem(url, patient=False).pipe_file(url, data, mode="create")


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
