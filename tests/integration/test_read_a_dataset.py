"""The examples of docs/read-a-dataset.md, run as written, with a dataset in S3, on Ray, and with Hugging Face."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from flows.services.local_stack import Stack
from pipeline.dataset import index, snapshot
from pipeline.dataset.snapshot import Snapshot
from pipeline.store import objects
from tests.integration.conftest import ROOT, igpt
from tests.pipeline.readers.conftest import write_source

pytestmark = pytest.mark.services

PAGE = ROOT / "docs" / "read-a-dataset.md"
DATASET = "s3://datasets/photos"
# Hugging Face's `datasets` asks for an older fsspec than the locked one, so it is in no lock.
HUGGING_FACE = ("datasets==5.2.0", "dill==0.4.1", "multiprocess==0.70.19", "xxhash==4.1.0")
# The examples run in one process, in their order, as if typed one after the other.
PROGRAM = """
import sys
from pathlib import Path
from flows.services import settings
settings.activate(Path(sys.argv[1]))
import os
os.environ["RAY_DATA_DISABLE_PROGRESS_BARS"] = "1"
{examples}
"""


@dataclass(frozen=True, kw_only=True)
class Block:
    """An example of the page: Python, or commands with their output."""

    language: str
    text: str


def examples() -> list[Block]:
    return [
        Block(language=language, text=text)
        for language, text in re.findall(
            r"^```(python|console)\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL
        )
    ]


@pytest.fixture(scope="module")
def stored(stack: Stack, image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """100 images in S3, two crops of each training image, some without a class, with a licence each."""
    folder = tmp_path_factory.mktemp("photos")
    write_source(image_folder, folder)
    fields = (
        *(f"raw={folder / 'raw'}", f"dataset={DATASET}", f"labels={folder / 'labels.csv'}", "keep_columns=licence"),
        *("resolution=8", "colours=24", "crops_per_image=2", "samples_per_shard=12"),
        *("validation_fraction=0.15", "test_fraction=0.1"),
    )
    done = igpt("dataset", "build", *fields)
    assert done.code == 0, done.err
    return snapshot.read(DATASET)


@pytest.fixture(scope="module")
def hugging_face(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hugging Face's `datasets` without what it asks for, in a folder of its own."""
    folder = tmp_path_factory.mktemp("hugging-face")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*pip, "--target", str(folder), *HUGGING_FACE], check=True)
    return folder


@pytest.fixture(scope="module")
def printed(
    stack: Stack, home: Path, stored: Snapshot, hugging_face: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    """What each Python example prints, by its first line, after the commands of the page ran before it."""
    folder = tmp_path_factory.mktemp("reader")
    for file in objects.list_files(DATASET):  # the dataset `local` of the last example
        target = folder / "local" / file.url.removeprefix(f"{DATASET}/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(objects.read_bytes(file.url))
    code = []
    for block in examples():
        if block.language == "python":
            code.append(f"print('== ' + {block.text.splitlines()[0]!r})\n{block.text}")
            continue
        for step in block.text.split("$ ")[1:]:
            command, *expected = step.splitlines()
            code.append(
                f"import subprocess\n"
                f"ran = subprocess.run({command!r}, shell=True, capture_output=True, text=True)\n"
                f"assert ran.returncode == 0, ran.stderr\n"
                f"shown = [line for line in ran.stdout.splitlines() if not line.endswith(' s)')]\n"
                f"assert len(shown) == 1 and shown[0].endswith({(expected or [''])[0]!r}), shown\n"
            )
    program = folder / "program.py"  # a file, as its workers may be spawned
    program.write_text(PROGRAM.format(examples="\n".join(code)))
    ran = subprocess.run(
        [sys.executable, str(program), str(home)],
        cwd=folder,
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": f"{ROOT}:{hugging_face}",
            "HF_HOME": str(folder / "hf"),
            "HF_HUB_OFFLINE": "1",
            "TMPDIR": str(folder),
        },
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-4000:]
    parts = ran.stdout.split("== ")[1:]
    yield {part.partition("\n")[0]: part.partition("\n")[2] for part in parts}


@pytest.mark.parametrize(
    ("first_line", "shown"),
    [
        (
            "from torch.utils.data import DataLoader",
            r"torch.Size\(\[16, 8, 8, 3\]\) tensor\(\[.*\['.*'(flower|temple)'",
        ),
        ("loader = DataLoader(dataset, batch_size=16, num_workers=2)", ""),
        ("from pipeline.readers.webdataset import open_pipeline", r"^\(16, 8, 8\) \["),
        ("from pipeline.readers import arrow", r"^\d+ \['key', 'crop', .*'licence'\]"),
        ("import datasets", r"^torch.Size\(\[8, 8, 3\]\) (flower|temple|None)"),
        ("import ray", r"^\[{'key': '[0-9a-f]{20}', 'mean': [0-9.]+}"),
        ('pictures = datasets.load_dataset("webdataset"', r"^<PIL.PngImagePlugin.PngImageFile .* (flower|temple|None)"),
        ("import json, subprocess", r"^[0-9a-f]{20}-000 b'(-1|0|1)'\n[0-9a-f]{20}-001 b'"),
    ],
)
def test_an_example_runs_and_prints(printed: dict[str, str], first_line: str, shown: str) -> None:
    (output,) = [output for line, output in printed.items() if line.startswith(first_line)]
    assert re.search(shown, output, re.DOTALL), output


def test_all_examples_are_looked_at(printed: dict[str, str]) -> None:
    assert len(printed) == len([block for block in examples() if block.language == "python"]) == 8


def test_an_export_goes_into_a_bucket_once(stored: Snapshot) -> None:
    out = "s3://raw/pictures"
    done = igpt("dataset", "export", DATASET, "--out", out, "--format", "folders", "--split", "train")
    assert done.code == 0, done.err
    urls = {file.url for file in objects.list_files(out)}
    assert len(urls) == stored.samples("train") + 1 and f"{out}/manifest.json" in urls
    assert {url.split("/")[-2] for url in urls} == {"pictures", "flower", "temple", "unlabelled"}
    again = igpt("dataset", "export", DATASET, "--out", out)
    assert again.code == 2 and again.err.endswith("holds an export already; give another folder, or remove it first\n")


def columns(heading: str) -> dict[str, str]:
    """Names and types of a table of the page."""
    rows = PAGE.read_text().partition(f"| {heading} | type | meaning |\n|---|---|---|\n")[2].split("\n\n")[0]
    types: dict[str, str] = {}
    for row in rows.splitlines():
        names, kinds, _ = row.strip("|").split("|", 2)
        of_row = re.findall(r"`(\w+)`", names)
        given = [kind.strip() for kind in kinds.split(",")]
        types |= {name: (given * len(of_row))[number] for number, name in enumerate(of_row)}
    return types


def test_the_tables_of_columns_are_those_of_the_files() -> None:
    assert columns("index column") == {field.name: str(field.type) for field in index.INDEX}
    in_index, of_quarantine = columns("index column"), columns("quarantine column")
    for name, kind in of_quarantine.items():
        of_quarantine[name] = in_index[name] if kind == "as in the index" else kind
    assert of_quarantine == {field.name: str(field.type) for field in index.QUARANTINE}
