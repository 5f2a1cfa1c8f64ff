"""Names from outside (classes, files, runs, tags of models) in the output of every command that prints them."""

import csv
import io
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from flows.cli import registry as registry_commands
from igpt_model.registry.client import Version
from igpt_model.runs import record
from igpt_model.runs.record import RunRecord
from pipeline.build.build import build
from pipeline.config import DatasetConfig
from pipeline.dataset.snapshot import Snapshot
from pipeline.printable import UNPRINTABLE, printable
from tests.conftest import Command, run_here
from tests.igpt_model.training.test_loop import digits_snapshot, short_training

Igpt = Callable[..., Command]

HOSTILE = {
    "a closing tag of rich": "[/i]",
    "an opening tag of rich": "[red]",
    "an emoji's code": ":cat:",
    "a colour": "\x1b[31mred\x1b[0m",
    "a cleared screen": "\x1b[2J\x1b[H",
    "a title of the window": "\x1b]0;title\x07",
    "a code of one character": "\x9b31m",
    "two lines": "one\ntwo",
    "a line written over": "safe\rigpt: done",
    "a tab": "a\tb",
    "a reversed ending": "photo\u202egnp.exe",
    "a line separator": "a\u2028b",
    "a zero-width space": "cat\u200b",
    "a formula": r"$\frac{1}{$",
    "Markdown": "[x](http://evil) `code` *b*",
    "HTML": "<script>alert(1)</script>",
    "a format": "{0} %s %(x)s",
    "an escape as text": r"\x1b[31m",
    "another script": "名前 größer",
}
NAMES = tuple(HOSTILE.values())


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two snapshots whose classes, files and reasons of rejection carry all names; the second has three more images."""
    root = tmp_path_factory.mktemp("hostile")
    raw, random = root / "raw", np.random.default_rng(0)
    raw.mkdir()
    rows: list[tuple[str, str]] = []

    def add(label: str, name: str) -> None:
        Image.fromarray(random.integers(0, 256, (12, 12, 3), np.uint8)).save(raw / name, "PNG")
        rows.append((name, label))

    for number, label in enumerate(NAMES):
        for copy in range(4):
            add(label, f"{number}-{copy}-{label.replace('/', '_')}.png")
    for label in NAMES[:3]:
        (raw / f"bad-{label.replace('/', '_')}.png").write_bytes(b"not an image")

    def build_it(number: int) -> None:
        labels = root / f"labels-{number}.csv"
        with labels.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("file_name", "label"), *rows])
        config = DatasetConfig(
            raw=str(raw), dataset=str(root / "data\x1b[31m\nset"), labels=str(labels), resolution=8, colours=16,
            validation_fraction=0.2, test_fraction=0.2, max_reject_fraction=0.5,
        )  # fmt: skip
        with mock.patch("pipeline.cluster.tasks.map_tasks", run_here):
            build(config)

    build_it(1)
    for label in NAMES:
        add(f"new {label}", f"new-{label.replace('/', '_')}.png")
    build_it(2)
    return root / "data\x1b[31m\nset"


def check(ended: Command, code: int = 0) -> list[str]:
    """The lines of a command that ended as it should, none of which a terminal obeys."""
    assert ended.code == code, ended.out + ended.err
    lines = [line for stream in (ended.out, ended.err) for line in stream.split("\n")]
    assert [line for line in lines if UNPRINTABLE.search(line)] == []
    return [line for line in lines if line]


@pytest.mark.parametrize(
    "arguments", ["ls", "show", "show 1", "diff 1 2", "verify", "gc --dry-run", "sample", "urls", "images", "rejected"]
)
def test_what_commands_print_of_a_dataset_is_harmless(arguments: str, igpt: Igpt, dataset: Path) -> None:
    command, *more = arguments.split()
    lines = check(igpt("dataset", command, dataset, *more))
    assert lines
    if command != "sample":
        json.loads(igpt("dataset", command, dataset, *more, "--json").out)


def test_show_names_each_class_on_its_line(igpt: Igpt, dataset: Path) -> None:
    lines = check(igpt("dataset", "show", dataset, 1))
    for name in NAMES:
        assert len([line for line in lines if line.startswith(f"{printable(name)}  ")]) == 1, name
    shown = json.loads(igpt("dataset", "show", dataset, 1, "--json").out)
    assert set(shown["images_by_class"]) == set(NAMES)


def test_diff_names_new_classes_and_files(igpt: Igpt, dataset: Path) -> None:
    text = "\n".join(check(igpt("dataset", "diff", dataset, 1, 2)))
    changes = json.loads(igpt("dataset", "diff", dataset, 1, 2, "--json").out)
    assert set(changes["new_classes"]) == {f"new {name}" for name in NAMES}
    for name in NAMES:
        assert printable(f"new {name}") in text
    added = changes["sources"]["added"]
    assert len(added) == len(NAMES)
    for uri in added:
        assert f"added {printable(uri)}" in text


COMMANDS = (
    "dataset ls {}", "dataset show {}", "dataset verify {}", "dataset gc {}", "dataset sample . --split {}",
    "dataset sample . --out {}/a.png", "dataset build raw={} dataset=d resolution=x", "dataset build {}",
    "dataset build --config {}", "dataset build raw=r dataset=d labels={} {}=1", "runs show {}", "runs ls {}",
    "score {} --model m", "complete a.png --model {} -o {}.png", "sample --model {} -o {}", "convert {} out",
    "config {}", "demo --raw {}", "pretrain preset={}", "probe {}=1", "deploy --file {}", "deploy {} --check",
    "{}", "dataset {}", "status --{}", "status --home {}", "dataset ls d --json --home {}", "down --home {}",
    "dataset expire {} --keep 1 --even-used", "dataset expire d --days {}", "dataset compact {} --dry-run",
    "dataset erase d --key {}", "dataset erase d --where {}", "dataset erase {} --url u --dry-run",
    "dataset erase d --list {}",
    "dataset gc d --min-age-hours {}", "runs resume {}", "models show {}", "refresh {}",
)  # fmt: skip


def told(igpt: Igpt, arguments: str, name: str) -> None:
    """The command fails, or has nothing to list, in one harmless line."""
    ended = igpt(*(word.replace("{}", name) for word in arguments.split()))
    lines = check(ended, ended.code)
    assert len(lines) == 1 and ended.code in (0, 1, 2), lines
    assert ended.code == 0 or lines[0].startswith("igpt: ") or lines[0].startswith("No services were started here")
    assert "this is a bug" not in lines[0]


@pytest.mark.parametrize("arguments", COMMANDS)
def test_what_is_wrong_is_told_in_one_harmless_line(arguments: str, igpt: Igpt) -> None:
    told(igpt, arguments, " ".join(NAMES[:15]))


@pytest.mark.parametrize("name", HOSTILE)
def test_every_name_is_told_in_one_harmless_line(name: str, igpt: Igpt) -> None:
    told(igpt, "runs show {}", HOSTILE[name])


@pytest.mark.long
@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("arguments", COMMANDS)
def test_every_command_tells_every_name(arguments: str, name: str, igpt: Igpt) -> None:
    told(igpt, arguments, HOSTILE[name])


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    return digits_snapshot(tmp_path_factory.mktemp("digits"))


def test_what_commands_print_of_runs_is_harmless(igpt: Igpt, digits: Snapshot, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for number, name in enumerate(NAMES):
        folder = f"{number}{name.replace('/', '_')}"
        config = short_training(digits, tmp_path).with_fields(runs=str(runs), name=folder, model_name=f"m{name}")
        record.write(str(runs / folder), RunRecord(config=config, mlflow_run=name))
        lines = check(igpt("runs", "show", runs / folder))
        assert lines[0].startswith(printable(f"{runs / folder}: unfinished"))
        json.loads(igpt("runs", "show", runs / folder, "--json").out)
    assert len(check(igpt("runs", "ls", runs))) == 1 + len(NAMES)
    assert {run["url"] for run in json.loads(igpt("runs", "ls", runs, "--json").out)} == {
        str(runs / f"{number}{name.replace('/', '_')}") for number, name in enumerate(NAMES)
    }


def test_what_commands_print_of_models_is_harmless(igpt: Igpt, monkeypatch: pytest.MonkeyPatch) -> None:
    """The registry's answers stand in for a server's: MLflow accepts any text as the value of a tag."""
    created = datetime(2026, 1, 5, tzinfo=UTC)
    versions = [
        Version(
            name=f"model{name}", number=number, run_id="r", model_id="m", aliases=(f"alias{name}",), created=created,
            tags={f"tag{name}": name, "igpt.dataset": name, "number": str(number)},
        )
        for number, name in enumerate(NAMES)
    ]  # fmt: skip

    class Answers:
        def names(self) -> list[str]:
            return [version.name for version in versions]

        def versions(self, name: str) -> list[Version]:
            return [version for version in versions if version.name == name]

        def find(self, reference: str) -> Version:
            return versions[int(reference)]

    monkeypatch.setattr(registry_commands, "_registry", lambda *_, **__: Answers())
    assert len(check(igpt("models", "ls"))) == 1 + len(NAMES)
    assert len(json.loads(igpt("models", "ls", "--json").out)) == len(NAMES)
    for number, name in enumerate(NAMES):
        assert printable(f"tag{name}") in "\n".join(check(igpt("models", "show", number)))
        lines = check(igpt("models", "compare", number, (number + 1) % len(NAMES)))
        assert printable(name) in "\n".join(lines)


def test_a_contact_sheet_has_a_caption_for_each_name(igpt: Igpt, dataset: Path) -> None:
    check(igpt("dataset", "sample", dataset, "--images", 60, "--out", "sheet.png"))
    assert Image.open(io.BytesIO(Path("sheet.png").read_bytes())).format == "PNG"
