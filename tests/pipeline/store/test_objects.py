"""Storage on a local disk: whole objects or none, conditional creation, and errors in one line."""

import os
import threading
from pathlib import Path

import pytest

from pipeline.errors import IgptError
from pipeline.store import objects

CONTENT = bytes(os.urandom(300_000))


def test_an_object_is_read_as_it_was_put(tmp_path: Path) -> None:
    url = str(tmp_path / "deep" / "er" / "object")
    assert not objects.exists(url)
    assert objects.size(url) is None
    for content in (b"first", b"", b"the second is longer"):
        objects.write_bytes(url, content)
        assert objects.read_bytes(url) == content
        assert objects.size(url) == len(content)
        assert objects.exists(url)
    assert [file.name for file in Path(url).parent.iterdir()] == ["object"]


def test_many_objects_are_put_at_once(tmp_path: Path) -> None:
    contents = {str(tmp_path / "many" / str(number)): bytes([number]) for number in range(5)}
    objects.write_many(contents)
    assert {url: objects.read_bytes(url) for url in contents} == contents
    objects.write_many({})


def test_a_failed_put_leaves_the_object_as_it_was(tmp_path: Path) -> None:
    url = str(tmp_path / "object")
    objects.write_bytes(url, b"good")
    with pytest.raises(TypeError):
        objects.write_bytes(url, "no bytes")  # type: ignore[arg-type]
    assert objects.read_bytes(url) == b"good"
    assert [file.name for file in tmp_path.iterdir()] == ["object"]


def test_readers_never_see_a_part_of_an_object(tmp_path: Path) -> None:
    url = str(tmp_path / "object")
    contents = {bytes([number]) * 200_000 for number in range(4)}
    objects.write_bytes(url, next(iter(contents)))
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            for content in contents:
                objects.write_bytes(url, content)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert all(objects.read_bytes(url) in contents for _ in range(200))
    finally:
        stop.set()
        writer.join()


def test_a_listing_is_sorted_and_complete(tmp_path: Path) -> None:
    names = ["b/2", "a", "b/1", "b/c/d", "z"]
    for name in names:
        objects.write_bytes(objects.join(str(tmp_path), name), name.encode())
    files = list(objects.list_files(str(tmp_path)))
    assert [file.url for file in files] == [str(tmp_path / name) for name in sorted(names)]
    assert [file.size for file in files] == [len(name) for name in sorted(names)]
    assert [file.url for file in objects.list_files(str(tmp_path / "a"))] == [str(tmp_path / "a")]
    assert list(objects.list_files(str(tmp_path / "missing"))) == []


def test_upload_and_download_are_inverse(tmp_path: Path) -> None:
    source, target, url = tmp_path / "source", tmp_path / "target", str(tmp_path / "store" / "deep" / "object")
    source.write_bytes(CONTENT)
    objects.upload(source, url)
    objects.download(url, target)
    assert target.read_bytes() == CONTENT


def test_a_deleted_tree_is_gone_and_nothing_else(tmp_path: Path) -> None:
    for name in ("tree/a", "tree/b/c", "tree2/a"):
        objects.write_bytes(objects.join(str(tmp_path), name), b"")
    objects.delete_tree(str(tmp_path / "tree"))
    objects.delete_tree(str(tmp_path / "missing"))
    assert [file.url for file in objects.list_files(str(tmp_path))] == [str(tmp_path / "tree2" / "a")]


@pytest.mark.parametrize(
    ("parts", "joined"),
    [
        (("s3://bucket", "a", "b"), "s3://bucket/a/b"),
        (("s3://bucket/", "/a/", "b.tar"), "s3://bucket/a/b.tar"),
        (("/data/", "a"), "/data/a"),
    ],
)
def test_join(parts: tuple[str, ...], joined: str) -> None:
    assert objects.join(*parts) == joined


def test_absolute_paths_mean_the_same_in_every_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    for form in ("data", "./data", f"{tmp_path}/data/", "x/../data", f"file://{tmp_path}/data"):
        assert objects.absolute(form) == str(tmp_path.resolve() / "data")
    assert objects.absolute("~/data") == "/home/somebody/data"
    assert objects.absolute("s3://bucket/../data") == "s3://bucket/../data"


def test_a_path_with_the_word_bucket_in_it_is_like_any_other(tmp_path: Path) -> None:
    url = str(tmp_path / "my-bucket" / "object")
    assert objects.size(url) is None
    with pytest.raises(FileNotFoundError):
        objects.read_bytes(url)


@pytest.mark.parametrize("url", ["zip:///x.zip", "tar:///x.tar", "github://o:r@main/x", "webhdfs://h/x"])
def test_a_protocol_that_takes_more_than_a_url_is_refused_in_one_line(url: str) -> None:
    with pytest.raises(IgptError, match=f"^{url}: no way to read") as raised:
        objects.read_bytes(url)
    assert "\n" not in str(raised.value)


def test_an_unknown_protocol_is_refused_in_one_line() -> None:
    with pytest.raises(IgptError, match=r"^unheard://x/y: no way to read unheard:// URLs") as raised:
        objects.read_bytes("unheard://x/y")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (FileNotFoundError("The specified bucket does not exist"), "the bucket does not exist"),
        (PermissionError("Forbidden"), "refused the credentials"),
        (type("NoCredentialsError", (Exception,), {})("Unable to locate credentials"), "no S3 credentials"),
        (type("EndpointConnectionError", (Exception,), {})("Could not connect"), "does not answer"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_errors_of_an_object_store_become_one_line(
    monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    class Store:
        def cat_file(self, url: str) -> bytes:
            raise error

    monkeypatch.setattr(objects, "filesystem", lambda url, **_: Store())
    monkeypatch.setattr(objects, "with_retries", lambda request, **_: request())
    with pytest.raises(IgptError, match=rf"^s3://b/key: .*{words}") as raised:
        objects.read_bytes("s3://b/key")
    assert "\n" not in str(raised.value)


def test_an_upload_whose_end_was_not_confirmed_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source"
    source.write_bytes(CONTENT)
    tries = []

    class Store:
        def put_file(self, local: str, url: str) -> None:
            tries.append(Path(local).read_bytes())
            if len(tries) == 1:
                raise FileNotFoundError("The specified upload does not exist.")

    monkeypatch.setattr(objects, "filesystem", lambda url, **_: Store())
    objects.upload(source, "s3://b/key")
    assert tries == [CONTENT, CONTENT]
