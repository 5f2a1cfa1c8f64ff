"""The object store with a real S3 server: odd names, whole objects and ranges, and one winner of a creation."""

import os
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

from flows.services.local_stack import Stack
from pipeline.errors import IgptError
from pipeline.store import bulk, objects, s3_reads
from pipeline.store.block_reader import BlockReader
from pipeline.store.conditional_create import AlreadyExistsError, create_bytes
from pipeline.store.s3_reads import ReadObject

pytestmark = [pytest.mark.services, pytest.mark.usefixtures("stack")]

ODD_NAMES = (
    *("photo[1].png", "all*.png", "with space & plus+.png", "ünïcødé.png", "#1.png", "50%.png", "a=b;c,d.png"),
    *("deep/er/and deeper/x.png", "~tilde'quote.png", "dots..png"),
)


@pytest.fixture
def folder() -> str:
    return f"s3://raw/{uuid.uuid4().hex}"


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names_are_listed_and_read(folder: str, name: str) -> None:
    url = f"{folder}/{name}"
    objects.write_bytes(url, name.encode())
    (fast,), (plain,) = bulk.list_files(folder), objects.list_files(folder)
    assert (
        (fast.url, fast.size, fast.etag) == (plain.url, plain.size, plain.etag) == (url, len(name.encode()), fast.etag)
    )
    (answer,) = bulk.read_objects([fast.url], [fast.size])
    assert answer == ReadObject(data=name.encode(), etag=fast.etag)
    assert bulk.read_range(url, 1, 4) == name.encode()[1:4]


def test_a_listing_of_one_object_and_of_nothing(folder: str) -> None:
    objects.write_bytes(f"{folder}/one.tar", b"1")
    objects.write_bytes(f"{folder}/one.tar.more", b"22")
    (only,) = bulk.list_files(f"{folder}/one.tar")
    assert (only.url, only.size) == (f"{folder}/one.tar", 1)
    assert list(bulk.list_files(f"{folder}/on")) == []


def test_a_long_listing_has_every_object_once(folder: str) -> None:
    names = {f"{folder}/{number:05d}" for number in range(2500)}
    objects.write_many(dict.fromkeys(names, b""))
    listed = [file.url for file in bulk.list_files(folder)]
    assert len(listed) == 2500
    assert set(listed) == names


def test_many_objects_and_what_is_missing(folder: str) -> None:
    contents = {f"{folder}/{number}": os.urandom(1000 * number) for number in range(40)}
    objects.write_many(contents)
    urls = [*contents, f"{folder}/missing"]
    answers = bulk.read_objects(urls, [len(data) for data in contents.values()] + [5])
    for data, answer in zip(contents.values(), answers[:-1], strict=True):
        assert isinstance(answer, ReadObject) and answer.data == data
    assert isinstance(answers[-1], FileNotFoundError)
    with pytest.raises(FileNotFoundError):
        bulk.read_range(f"{folder}/missing", 0, 5)


def test_ranges_of_a_large_object(folder: str) -> None:
    data = os.urandom(20 * 1024 * 1024)
    objects.write_bytes(f"{folder}/large", data)
    starts = [0, 10, 5_000_000, 5_100_000, len(data) - 7]
    lengths = [10, 0, 100_000, 3, 7]
    contents = bulk.read_ranges(f"{folder}/large", starts, lengths)
    assert contents == [data[s : s + n] for s, n in zip(starts, lengths, strict=True)]
    reader = BlockReader(f"{folder}/large", len(data))
    reader.seek(3)
    assert reader.read() == data[3:]


def test_of_many_creators_at_once_one_wins(folder: str) -> None:
    """`rclone serve s3` ignores the condition of a conditional write, so only the claims decide."""
    url = f"{folder}/object"

    def create(number: int) -> bool:
        try:
            create_bytes(url, str(number).encode() * 1000)
        except AlreadyExistsError:
            return False
        return True

    with ThreadPoolExecutor(6) as pool:
        won = list(pool.map(create, range(6)))
    assert sum(won) == 1
    assert objects.read_bytes(url) == str(won.index(True)).encode() * 1000
    assert [file.url for file in objects.list_files(folder)] == [url], "no claim is left behind"


def test_wrong_keys_and_no_bucket_are_one_line(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(IgptError, match="the bucket does not exist"):
        objects.check_reachable("s3://no-such-bucket/x")
    s3_reads._client.cache_clear()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    try:
        with pytest.raises(IgptError, match="refused the credentials"):
            list(bulk.list_files("s3://raw/wrong-keys"))
    finally:
        s3_reads._client.cache_clear()
