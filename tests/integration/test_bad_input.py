"""Bad input gives one clear line and a non-zero exit code, and publishes nothing."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest

from pipeline.store import objects
from tests.integration.conftest import Command, Refreshed, igpt

pytestmark = pytest.mark.services

DEAD = "127.0.0.1:9"


@dataclass(frozen=True)
class Case:
    """A command that must fail. Its arguments may contain {digits}, {run}, {runs} and {name} of the refreshed run."""

    expected: str
    arguments: str
    environment: dict[str, str] = field(default_factory=dict)


BUILD = "dataset build dataset=s3://datasets/never resolution=8 colours=16 raw={digits} "
TRAIN = "pretrain dataset=s3://datasets/refreshed runs=s3://runs/never preset=tiny global_batch=64 "
PROBE = "probe model={run} "

CASES = {
    "no such bucket": Case("the bucket does not exist", BUILD + "raw=s3://no-such-bucket/x"),
    "no such prefix": Case("nothing is there", BUILD + "raw=s3://raw/no-such-prefix"),
    "no such folder": Case("nothing is there", BUILD + "raw=/no/such/folder"),
    "an empty prefix": Case("nothing is there", BUILD + "raw=s3://raw/empty/"),
    "no image among the files": Case("none of its 1 files is an image", BUILD + "raw=s3://raw/texts"),
    "images that are none": Case("could be decoded", BUILD + "raw=s3://raw/broken"),
    "wrong keys": Case("refused the credentials", BUILD, {"AWS_SECRET_ACCESS_KEY": "wrong"}),
    "no store": Case("does not answer", BUILD, {"AWS_ENDPOINT_URL": f"http://{DEAD}"}),
    "an unknown field": Case("unknown field resolutoin, perhaps resolution", BUILD + "resolutoin=8"),
    "an odd resolution": Case("resolution is 7", BUILD + "resolution=7"),
    "one colour": Case("colours is 1", BUILD + "colours=1"),
    "more colours than there are": Case("distinct colours, fewer than the palette's 64", BUILD + "colours=64"),
    "a width that heads do not divide": Case("width 65 is not divisible by heads", TRAIN + "width=65"),
    "more workers than CPUs": Case("the Ray cluster has", TRAIN + "workers=64"),
    "no dataset": Case("no dataset snapshot there", TRAIN + "dataset=s3://datasets/nothing"),
    "no such snapshot": Case("there is no snapshot 7", TRAIN + "snapshot=7"),
    "no MLflow": Case(f"MLflow at http://{DEAD} does not answer", TRAIN, {"MLFLOW_TRACKING_URI": f"http://{DEAD}"}),
    "no Prefect": Case(
        f"Prefect at http://{DEAD}/api does not answer", TRAIN, {"PREFECT_API_URL": f"http://{DEAD}/api"}
    ),
    "no Ray": Case(f"Ray at {DEAD} does not answer", TRAIN, {"RAY_ADDRESS": DEAD}),
    "a probe with another palette": Case("has palette", PROBE + "dataset=s3://datasets/other-palette"),
    "a probe at another resolution": Case("has resolution 4", PROBE + "dataset=s3://datasets/other-resolution"),
    "a longer training on another palette": Case(
        "it was trained with palette",
        "pretrain preset=tiny layers=2 runs={runs} name={name} steps=9999 dataset=s3://datasets/other-palette",
    ),
}
OTHERS = {"other-palette": "colours=15", "other-resolution": "resolution=4"}


@pytest.fixture(scope="module")
def outcomes(refreshed: Refreshed, digits: str) -> dict[str, Command]:
    """The results of the commands. Two run at a time: most of their time, they import libraries on one core."""
    objects.write_bytes("s3://raw/texts/a.txt", b"text")
    objects.write_many({f"s3://raw/broken/{number}.png": b"not a picture" for number in range(5)})
    runs, name = refreshed.run.rsplit("/", 1)

    def run(arguments: str, environment: dict[str, str] | None = None) -> Command:
        words = arguments.format(digits=digits, run=refreshed.run, runs=runs, name=name).split()
        return igpt(*words, environment=environment, seconds=200)  # the last value of a field counts

    with ThreadPoolExecutor(2) as pool:
        fractions = "validation_fraction=0.2 test_fraction=0.2 "
        builds = [BUILD + fractions + f"dataset=s3://datasets/{name} {field}" for name, field in OTHERS.items()]
        for built in pool.map(run, builds):
            assert built.code == 0, built.err
        ended = pool.map(lambda case: run(case.arguments, case.environment), CASES.values())
        return dict(zip(CASES, ended, strict=True))


@pytest.mark.parametrize("name", CASES)
def test_bad_input_gives_one_clear_line(name: str, outcomes: dict[str, Command]) -> None:
    command = outcomes[name]
    assert command.code == 2, command.out + command.err
    assert len(command.err.strip().splitlines()) == 1, command.err
    assert command.err.startswith("igpt: ")
    assert CASES[name].expected in command.err
    assert "Traceback" not in command.out


def test_bad_input_publishes_nothing(outcomes: dict[str, Command]) -> None:
    assert not any(file.url.endswith(("LATEST", ".json")) for file in objects.list_files("s3://datasets/never"))
    assert not [file for file in objects.list_files("s3://runs/never") if "/lease/" not in file.url]
