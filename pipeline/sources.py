"""Raw images to an Arrow listing: an image folder, or tar files of one, on any store. Reads names, never pixels."""

import hashlib
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

import pyarrow as pa

from pipeline import images, storage
from pipeline.errors import IgptError
from pipeline.shards import KEY_LENGTH

LISTING = pa.schema(
    [
        ("key", pa.string()),  # the identity of an image in the dataset: a hash of its name
        ("name", pa.string()),  # its path below the source, tar member names included
        ("url", pa.string()),  # the object to read
        ("offset", pa.int64()),  # where the image's bytes begin in the object; -1: it is the whole object
        ("length", pa.int64()),  # bytes
        ("etag", pa.string()),  # of the object
        ("label", pa.string()),  # the class's name: the folder that the image lies in; null at the top
    ]
)


@dataclass(frozen=True, kw_only=True)
class Source:
    """The listing of a source, sorted by name, and the number of files that are no images by their extension."""

    url: str
    listing: pa.Table
    ignored_files: int

    @property
    def digest(self) -> str:
        """SHA-256, in hex, of what the listing says, wherever the source lies."""
        digest = hashlib.sha256()
        columns = [self.listing[name].to_pylist() for name in ("key", "offset", "length", "etag", "label")]
        for row in zip(*columns, strict=True):
            digest.update(repr(row).encode())
        return digest.hexdigest()

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, sorted; a label is an index into them."""
        return tuple(sorted(name for name in self.listing["label"].unique().to_pylist() if name is not None))


def list_source(url: str, *, progress: Callable[[int], None] = lambda count: None) -> Source:
    """List the images of a folder (any depth; a folder's name is the class) and of the tar files in it.

    Raises IgptError when the source does not exist, is empty, or holds no image. `progress` hears the number of images
    found so far.
    """
    url = storage.absolute(url)
    storage.check_reachable(url)
    rows: list[tuple[str, str, int, int, str]] = []
    files = ignored = 0
    for file in storage.list_files(url):
        name = file.url.removeprefix(url).lstrip("/") or file.url.rsplit("/", 1)[-1]
        if (file.size == 0 and file.url.endswith("/")) or _is_hidden(name):
            continue
        files += 1
        suffix = PurePosixPath(name).suffix.lower()
        if suffix == ".tar":
            members = list(_tar_members(file))
            rows.extend((member, file.url, offset, size, file.etag) for member, offset, size in members)
        elif suffix in images.EXTENSIONS:
            rows.append((name, file.url, -1, file.size, file.etag))
        else:
            ignored += 1
        if len(rows) % 1000 == 0 or suffix == ".tar":
            progress(len(rows))
    if not files:
        raise IgptError(f"{url}: nothing is there; give the folder, prefix or tar file that holds the raw images")
    if not rows:
        raise IgptError(
            f"{url}: none of its {files} files is an image or a tar of images "
            f"(by extension: {', '.join(sorted(images.EXTENSIONS))})"
        )
    return Source(url=url, listing=_table(rows), ignored_files=ignored)


def _is_hidden(name: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(name).parts)


def _tar_members(file: storage.StoredFile) -> Iterator[tuple[str, int, int]]:
    """Name, offset and size in bytes of every image in a tar. Raises IgptError when the tar cannot be read through."""
    try:
        with storage.open_read(file.url) as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
            for member in archive:
                name = str(PurePosixPath(member.name)).lstrip("/")  # without the "./" that `tar -C folder .` puts first
                image = PurePosixPath(name).suffix.lower() in images.EXTENSIONS
                if member.isreg() and not member.issparse() and image and not _is_hidden(name):
                    yield name, member.offset_data, member.size
                archive.members = []  # type: ignore[attr-defined]  # tarfile keeps every header otherwise
            # tarfile takes a damaged header, or none at all, for the end; a complete tar ends in blocks of zeros.
            stream.seek(archive.offset)
            if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError(f"cut off or damaged at byte {archive.offset}")
    except tarfile.TarError as error:
        raise IgptError(f"{file.url}: not a readable tar ({error}); give an uncompressed, complete tar file") from None


def _table(rows: list[tuple[str, str, int, int, str]]) -> pa.Table:
    rows.sort()
    seen: Counter[str] = Counter()
    columns: dict[str, list[object]] = {field.name: [] for field in LISTING}
    for name, url, offset, length, etag in rows:
        seen[name] += 1
        # The same name in two tars is two images; the first keeps the plain key.
        identity = name if seen[name] == 1 else f"{name}#{seen[name]}"
        parents = PurePosixPath(name).parent.name
        values = (key_of(identity), name, url, offset, length, etag, parents or None)
        for field, value in zip(LISTING, values, strict=True):
            columns[field.name].append(value)
    table = pa.table(columns, LISTING)
    if len(set(columns["key"])) != len(rows):
        raise IgptError("two image names have the same key; rename one of them")  # 1 in 10^12 for a million images
    return table


def key_of(name: str) -> str:
    """The key of an image: 80 bits of its name's SHA-256, in hex."""
    return hashlib.sha256(name.encode()).hexdigest()[:KEY_LENGTH]
