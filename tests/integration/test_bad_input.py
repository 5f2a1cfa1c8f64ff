"""Bad input: each gives one clear line and a non-zero exit, and nothing is half published."""

import pytest

from pipeline import storage
from tests.integration.conftest import Refreshed, igpt

pytestmark = pytest.mark.services

BUILD = ("dataset", "build", "dataset=s3://datasets/never", "resolution=8", "colours=16")


def fails_with(expected: str, *arguments: str, environment: dict[str, str] | None = None) -> None:
    command = igpt(*arguments, environment=environment, seconds=120)
    assert command.code == 2, command.out + command.err
    lines = command.err.strip().splitlines()
    assert len(lines) == 1, command.err
    assert lines[0].startswith("igpt: ")
    assert expected in lines[0]
    assert "Traceback" not in command.out
    assert not list(storage.list_files("s3://datasets/never"))


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("raw=s3://no-such-bucket/x", "the bucket does not exist"),
        ("raw=s3://raw/no-such-prefix", "nothing is there"),
        ("raw=/no/such/folder", "nothing is there"),
    ],
)
def test_a_source_that_is_not_there(digits: str, override: str, expected: str) -> None:
    fails_with(expected, *BUILD, override)


def test_a_prefix_without_a_single_image(digits: str) -> None:
    storage.write_bytes("s3://raw/texts/a.txt", b"text")
    fails_with("none of its 1 files is an image", *BUILD, "raw=s3://raw/texts")


def test_images_that_are_none(digits: str) -> None:
    for number in range(5):
        storage.write_bytes(f"s3://raw/broken/{number}.png", b"not a picture")
    command = igpt(*BUILD, "raw=s3://raw/broken", "dataset=s3://datasets/broken")
    assert command.code == 2
    assert "could be decoded" in command.err
    assert not storage.exists("s3://datasets/broken/LATEST")


def test_wrong_keys(digits: str) -> None:
    fails_with("refused the credentials", *BUILD, f"raw={digits}", environment={"AWS_SECRET_ACCESS_KEY": "wrong"})


def test_a_store_that_does_not_answer(digits: str) -> None:
    fails_with("does not answer", *BUILD, f"raw={digits}", environment={"AWS_ENDPOINT_URL": "http://127.0.0.1:9"})


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("resolutoin=8", "unknown field resolutoin"),
        ("resolution=7", "resolution is 7"),
        ("colours=1", "colours is 1"),
        ("colours=64", "distinct colours, fewer than the palette's 64"),
    ],
)
def test_an_impossible_dataset(digits: str, override: str, expected: str) -> None:
    arguments = [argument for argument in BUILD if argument.split("=")[0] != override.split("=")[0]]
    fails_with(expected, *arguments, f"raw={digits}", override)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("width=65", "width 65 is not divisible by heads"),
        ("workers=64", "the Ray cluster has"),
        ("dataset=s3://datasets/nothing", "no dataset snapshot there"),
        ("snapshot=7", "there is no snapshot 7"),
    ],
)
def test_an_impossible_training(refreshed: Refreshed, override: str, expected: str) -> None:
    arguments = ["dataset=s3://datasets/refreshed", "runs=s3://runs/never", "preset=tiny", "global_batch=64", override]
    fails_with(expected, "pretrain", *arguments)
    assert not list(storage.list_files("s3://runs/never"))


@pytest.mark.parametrize(
    ("variable", "expected", "command"),
    [
        ("MLFLOW_TRACKING_URI", "MLflow at http://127.0.0.1:9 does not answer", "pretrain"),
        ("PREFECT_API_URL", "Prefect at http://127.0.0.1:9 does not answer", "pretrain"),
        ("RAY_ADDRESS", "Ray at http://127.0.0.1:9 does not answer", "pretrain"),
    ],
)
def test_a_server_that_does_not_answer(refreshed: Refreshed, variable: str, expected: str, command: str) -> None:
    address = "127.0.0.1:9" if variable == "RAY_ADDRESS" else "http://127.0.0.1:9"
    fails_with(
        expected.replace("http://127.0.0.1:9", address),
        command,
        "dataset=s3://datasets/refreshed",
        "runs=s3://runs/never",
        environment={variable: address},
    )


def test_a_dataset_of_another_palette_or_resolution_than_the_model(refreshed: Refreshed, digits: str) -> None:
    for name, override, expected in (
        ("other-palette", "seed=5", "has palette"),
        ("other-resolution", "resolution=4", "has resolution 4"),
    ):
        arguments = [a for a in BUILD[2:] if a.split("=")[0] not in {"dataset", override.split("=")[0]}]
        fractions = (
            "validation_fraction=0.2",
            "test_fraction=0.2",
            "colours=15" if "palette" in name else "colours=16",
        )
        built = igpt(*BUILD[:2], *arguments, *fractions, f"dataset=s3://datasets/{name}", f"raw={digits}", override)
        assert built.code == 0, built.err
        fails_with(expected, "probe", f"model={refreshed.run}", f"dataset=s3://datasets/{name}")
    run, name = refreshed.run.rsplit("/", 1)
    fails_with(
        "it was trained with palette",
        *("pretrain", "preset=tiny", "layers=2", f"runs={run}", f"name={name}", "steps=60"),
        "dataset=s3://datasets/other-palette",
    )
