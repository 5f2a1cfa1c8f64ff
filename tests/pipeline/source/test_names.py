"""Names of images, and what folders and archives say by theirs: tables of situations."""

import pytest

from pipeline.source import names


@pytest.mark.parametrize(
    ("url", "file", "name"),
    [
        ("s3://b/raw", "s3://b/raw/cat/1.png", "cat/1.png"),
        ("s3://b/raw/", "s3://b/raw/cat/1.png", "cat/1.png"),
        ("s3://b/raw", "s3://b/raw/cat//1.png", "cat//1.png"),
        ("s3://b/raw", "s3://b/raw//1.png", "/1.png"),
        ("s3://b/raw/", "s3://b/raw//1.png", "/1.png"),
        ("s3://b", "s3://b//raw/1.png", "/raw/1.png"),
        ("s3://b", "s3://b/raw/1.png", "raw/1.png"),
        ("/data/all.tar", "/data/all.tar", "all.tar"),
    ],
)
def test_the_name_of_an_object_below_the_source(url: str, file: str, name: str) -> None:
    assert names.below(url, file) == name


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("./cat/1.png", "cat/1.png"),
        ("././cat/1.png", "cat/1.png"),
        ("/cat/1.png", "cat/1.png"),
        ("cat//./1.png", "cat/1.png"),
        ("../data/cat/1.png", "../data/cat/1.png"),
        ("cat/../dog/1.png", "dog/1.png"),
        ("../../1.png", "../../1.png"),
        ("caf\udce9/1.png", "caf\\xe9/1.png"),
    ],
)
def test_the_name_of_a_member(path: str, name: str) -> None:
    assert names.of_member(path) == name
    assert not names.is_hidden(name)


@pytest.mark.parametrize(
    ("name", "hidden"),
    [
        (".DS_Store", True),
        ("cat/._1.png", True),
        ("__MACOSX/cat/1.png", True),
        ("cat/@eaDir/1.png/THUMB.jpg", True),
        ("#recycle/1.png", True),
        ("cat/@Recycle/1.png", True),
        ("$RECYCLE.BIN/1.png", True),
        ("../data/1.png", False),
        ("@at/#1.png", False),
        ("$d/1.png", False),
        ("a..b/1.png", False),
    ],
)
def test_leftovers_are_hidden(name: str, hidden: bool) -> None:
    assert names.is_hidden(name) == hidden


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train/cat/1.png", "train"),
        ("Training/1.png", "train"),
        ("sub/VAL/dog/1.png", "validation"),
        ("dev/1.png", "validation"),
        ("dev-kit/train/cat/1.png", "train"),
        ("ILSVRC2012_devkit/test/1.png", "test"),
        ("test-images/train/1.png", "train"),
        ("test-images/1.png", None),
        ("trainer/1.png", None),
        ("validation-study/1.png", None),
        ("train-0001.tar/dog/5.png", "train"),
        ("data/train-00000-of-00002-a1b2c3.parquet/00000000", "train"),
        ("val.zip/cat/1.png", "validation"),
        ("test_images.tar.gz/1.png", "test"),
        ("test-tube.tar/1.png", None),
        ("dev-kit.tar/1.png", None),
        ("train.parquet/part-0.parquet/00000000", "train"),
        ("train/test/1.png", "train"),  # the outermost
        ("cat/test.png", None),
    ],
)
def test_only_a_folder_whose_own_name_is_a_splits_is_one(name: str, split: str | None) -> None:
    place = names.split_of(name)
    assert (place and place[0]) == split


@pytest.mark.parametrize(
    ("name", "is_one_of_several", "label"),
    [
        ("n01440764.tar", True, "n01440764"),
        ("train/n01440764.tar", True, "n01440764"),
        ("ILSVRC2012_img_train/n01440764.tar", True, "n01440764"),
        ("cat.zip", True, "cat"),
        ("cat.zip", False, "cat"),
        ("cat/images.zip", False, "cat"),
        ("cat/photos-2024.zip", False, "cat"),
        ("cat/part-0.parquet", False, "cat"),
        ("cat/00000.tar", False, "cat"),
        ("cat/train/part-0.parquet", False, "cat"),
        ("label=cat/part-0.parquet", False, "cat"),
        ("label=cat/split=train/part-0.parquet", False, "cat"),
        ("year=2024/part-0.parquet", False, None),
        ("cat.parquet/part-0.parquet", False, "cat"),
        ("train.parquet/part-0.parquet", False, None),
        ("00000.tar", False, None),
        ("train-00000-of-00002.parquet", False, None),
        ("train/0000.parquet", False, None),
        ("images_001.tar.gz", False, None),
        ("data_batch_1.tar", False, None),
        ("train.tar", False, None),
    ],
)
def test_the_class_that_the_place_of_an_archive_gives(name: str, is_one_of_several: bool, label: str | None) -> None:
    assert names.class_of_archive(name, stands_for_a_class=is_one_of_several, label_column="label") == label


def test_the_folder_of_hive_is_that_of_the_label_column() -> None:
    of = names.class_of_archive("species=cat/0.parquet", stands_for_a_class=False, label_column="species")
    assert of == "cat"


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("cat/1.png", "cat"),
        ("cat//1.png", "cat"),
        ("1.png", None),
        ("/1.png", None),
        ("../1.png", None),
        ("n01/images/1.png", "n01"),
        ("n01/Imgs/img/1.png", "n01"),
        ("images/1.png", None),
        ("images of cats/1.png", "images of cats"),
    ],
)
def test_the_folder_of_an_image(name: str, folder: str | None) -> None:
    assert names.folder_of(name) == folder
