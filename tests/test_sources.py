"""The listing: every image of a folder or a tar once, with where its bytes are; one line for what cannot be used."""

import io
import os
import shutil
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import storage
from pipeline.errors import IgptError
from pipeline.sources import LISTING, Source, key_of, list_source


def write(path: Path, content: bytes = b"content") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def write_tar(path: Path, members: dict[str, bytes], tar_format: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tar_format) as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def listed(url: object) -> Source:
    source = list_source(str(url))
    assert source.listing.schema == LISTING
    keys = source.listing["key"].to_pylist()
    assert len(set(keys)) == len(keys)
    return source


def column(source: Source, name: str) -> list[object]:
    return source.listing[name].to_pylist()


def contents(source: Source) -> dict[object, bytes]:
    """What the listing's URLs, offsets and lengths lead to, by key."""
    answers = storage.read_many(column(source, "url"), column(source, "offset"), column(source, "length"))
    return dict(zip(column(source, "key"), answers, strict=True))


def test_a_folder_of_classes(image_folder: Path) -> None:
    source = listed(image_folder)
    files = sorted(str(file.relative_to(image_folder)) for file in image_folder.rglob("*.*"))
    assert column(source, "name") == files
    assert column(source, "label") == [name.split("/")[0] for name in files]
    assert source.classes == ("digit", "flower", "temple")
    assert source.ignored_files == 0
    assert list(contents(source).values()) == [(image_folder / name).read_bytes() for name in files]
    assert column(source, "length") == [(image_folder / name).stat().st_size for name in files]


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    for name in ("b.jpg", "a.PNG", "c.webp"):
        write(tmp_path / name)
    source = listed(tmp_path)
    assert column(source, "name") == ["a.PNG", "b.jpg", "c.webp"]
    assert column(source, "label") == [None] * 3
    assert source.classes == ()


def test_the_class_is_the_folder_that_the_image_lies_in(tmp_path: Path) -> None:
    write(tmp_path / "train" / "cats" / "1.png")
    write(tmp_path / "train" / "dogs" / "big" / "1.png")
    write(tmp_path / "top.png")
    assert column(listed(tmp_path), "label") == [None, "cats", "big"]


def test_one_image_is_a_source(tmp_path: Path) -> None:
    assert column(listed(write(tmp_path / "only.png")), "name") == ["only.png"]


@pytest.mark.parametrize(
    "name", ["photo[1].png", "what?.png", "all*.png", "with space & plus+.png", "ünïcødé.png", "#1.png"]
)
def test_odd_names_are_read(tmp_path: Path, name: str) -> None:
    write(tmp_path / "class" / name, b"this one")
    write(tmp_path / "class" / "photo1.png", b"another")
    source = listed(tmp_path)
    assert contents(source)[key_of(f"class/{name}")] == b"this one"


@pytest.mark.parametrize("form", ["{}", "{}/", "file://{}", "{}/../" + "raw"])
def test_the_form_of_the_url_does_not_matter(tmp_path: Path, form: str) -> None:
    write(tmp_path / "raw" / "a" / "1.png")
    plain = listed(tmp_path / "raw")
    other = listed(form.format(tmp_path / "raw"))
    assert other.listing == plain.listing
    assert other.digest == plain.digest


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_tar_equals_the_folder_that_it_holds(tmp_path: Path, tar_format: int) -> None:
    members = {f"{'deep' * 20}/{name}": name.encode() * 90 for name in ("1.png", f"{'long' * 22}.png", "3.png")}
    for name, content in members.items():
        write(tmp_path / "folder" / name, content)
    folder = listed(tmp_path / "folder")
    tar = listed(write_tar(tmp_path / "all.tar", members, tar_format))
    for same in ("key", "name", "label", "length"):
        assert column(tar, same) == column(folder, same)
    assert contents(tar) == contents(folder)


def test_the_dot_that_tar_puts_first_is_no_part_of_the_name(tmp_path: Path) -> None:
    members = {"./cats/1.png": b"a", "./2.png": b"b", "/dogs/3.png": b"c"}
    source = listed(write_tar(tmp_path / "all.tar", members))
    assert column(source, "name") == ["2.png", "cats/1.png", "dogs/3.png"]


def test_a_folder_of_tars_and_images(tmp_path: Path) -> None:
    write_tar(tmp_path / "part-0.tar", {"cats/1.png": b"one", "dogs/2.jpg": b"two"})
    write_tar(tmp_path / "more" / "part-1.tar", {"cats/3.png": b"three"})
    write(tmp_path / "cats" / "4.png", b"four")
    source = listed(tmp_path)
    assert column(source, "name") == ["cats/1.png", "cats/3.png", "cats/4.png", "dogs/2.jpg"]
    assert list(contents(source).values()) == [b"one", b"three", b"four", b"two"]
    assert source.classes == ("cats", "dogs")


def test_the_same_name_in_two_tars_is_two_images(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"cats/1.png": b"first"})
    write_tar(tmp_path / "b.tar", {"cats/1.png": b"second"})
    source = listed(tmp_path)
    assert column(source, "name") == ["cats/1.png"] * 2
    assert sorted(contents(source).values()) == [b"first", b"second"]
    # The first keeps the key that it has alone.
    assert contents(listed(tmp_path / "a.tar")).items() <= contents(source).items()


def test_hidden_files_are_no_images(tmp_path: Path) -> None:
    hidden = (".hidden.png", "._1.png", "cats/.thumbs/1.png", "__MACOSX/cats/._1.png", "./.top.png", "./._top.png")
    for name in ("cats/1.png", *hidden):
        write(tmp_path / "folder" / name)
    write_tar(tmp_path / "all.tar", dict.fromkeys(("./cats/1.png", *hidden), b"content"))
    for place in ("folder", "all.tar"):
        source = listed(tmp_path / place)
        assert column(source, "name") == ["cats/1.png"]
        assert source.ignored_files == 0


def test_files_that_are_no_images_are_counted(tmp_path: Path) -> None:
    for name in ("cats/1.png", "cats/notes.txt", "README", "labels.csv", "archive.tar.gz"):
        write(tmp_path / name)
    source = listed(tmp_path)
    assert column(source, "name") == ["cats/1.png"]
    assert source.ignored_files == 4


def test_tar_members_that_are_no_regular_images_are_left_out(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "all.tar", {"cats/1.png": b"one", "cats/1.json": b"{}"})
    with tarfile.open(path, "a") as archive:
        folder = tarfile.TarInfo("folder.png")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "cats/1.png"
        archive.addfile(link)
    assert column(listed(path), "name") == ["cats/1.png"]


def test_the_digest_says_what_is_in_the_source_and_not_where(image_folder: Path, tmp_path: Path) -> None:
    digest = listed(image_folder).digest
    copy = tmp_path / "copy"
    shutil.copytree(image_folder, copy)
    assert listed(copy).digest == digest
    os.utime(copy / "temple" / "07.png", (1, 1))  # another version of the object
    changed = listed(copy).digest
    (copy / "temple" / "07.png").rename(copy / "flower" / "07.png")
    assert len({digest, changed, listed(copy).digest}) == 3


def test_progress_hears_of_every_image_of_a_tar(tmp_path: Path) -> None:
    heard: list[int] = []
    write_tar(tmp_path / "a.tar", {f"{number}.png": b"" for number in range(5)})
    write_tar(tmp_path / "b.tar", {f"{number}.png": b"" for number in range(5, 9)})
    list_source(str(tmp_path), progress=heard.append)
    assert heard == [5, 9]


def assert_refused(url: Path, *words: str) -> None:
    with pytest.raises(IgptError) as raised:
        list_source(str(url))
    line = str(raised.value)
    assert "\n" not in line
    assert str(url) in line
    for word in words:
        assert word in line


def test_a_source_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert_refused(tmp_path / "missing", "nothing is there")


def test_an_empty_source_is_refused(tmp_path: Path) -> None:
    assert_refused(tmp_path, "nothing is there")


def test_a_source_without_images_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.txt")
    write(tmp_path / "b.tar.gz")
    assert_refused(tmp_path, "none of its 2 files", ".png")


def test_a_tar_without_images_is_refused(tmp_path: Path) -> None:
    assert_refused(write_tar(tmp_path / "texts.tar", {"a.txt": b"text"}), "none of its 1 files")


@pytest.mark.parametrize("compression", ["gz", "bz2", "xz"])
def test_a_compressed_tar_is_refused(tmp_path: Path, compression: str) -> None:
    path = tmp_path / "all.tar"
    with tarfile.open(path, f"w:{compression}") as archive:
        archive.addfile(tarfile.TarInfo("1.png"))
    assert_refused(path, "not a readable tar", "uncompressed")


@pytest.mark.parametrize("content", [b"", b"no tar" * 1000])
def test_what_is_no_tar_is_refused(tmp_path: Path, content: bytes) -> None:
    assert_refused(write(tmp_path / "all.tar", content), "not a readable tar")


@pytest.fixture(scope="module")
def whole_tar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tar of images of less than a block, a block, and more; 8,704 bytes of members."""
    sizes = (100, 512, 700, 3000)
    members = {f"cats/{size}.png": bytes([7]) * size for size in sizes}
    return write_tar(tmp_path_factory.mktemp("tar") / "whole.tar", members, tarfile.USTAR_FORMAT)


@settings(deadline=None, max_examples=60)
@given(blocks=st.integers(0, 15), beyond=st.sampled_from([0, 1, 100, 511]))
def test_a_tar_cut_anywhere_in_its_members_is_refused(whole_tar: Path, blocks: int, beyond: int) -> None:
    data = whole_tar.read_bytes()
    members_end = 512 * (2 + 2 + 3 + 7)
    kept = min(512 * blocks + beyond, members_end)
    assert not data[members_end:].strip(b"\0")
    path = write(whole_tar.parent / "cut.tar", data[:kept])
    assert_refused(path, "not a readable tar", "complete")


@pytest.mark.parametrize("member", range(4))
def test_a_tar_with_a_damaged_header_is_refused(whole_tar: Path, tmp_path: Path, member: int) -> None:
    data = bytearray(whole_tar.read_bytes())
    data[512 * (0, 2, 4, 7)[member] + 10] ^= 1
    assert_refused(write(tmp_path / "damaged.tar", bytes(data)), "not a readable tar")


def test_one_bad_tar_refuses_the_folder(tmp_path: Path, whole_tar: Path) -> None:
    shutil.copy(whole_tar, tmp_path / "good.tar")
    bad = write(tmp_path / "bad.tar", whole_tar.read_bytes()[:2000])
    with pytest.raises(IgptError, match=str(bad)):
        list_source(str(tmp_path))
