"""The demo's configuration for the digits and for the user's images."""

import re
from pathlib import Path

import pytest

from flows.config.demo import DIGITS_URL, demo_config
from pipeline.errors import IgptError

ROOT = Path(__file__).parents[3]


def test_without_raw_the_demo_uses_the_digits() -> None:
    config = demo_config(None, ["pretrain.steps=7"])
    assert (config.dataset.raw, config.dataset.resolution, config.pretrain.optimizer.steps) == (DIGITS_URL, 8, 7)
    assert config.pretrain.keeping.runs == "s3://runs/demo"


def test_the_users_images_get_their_own_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my photos.tar").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    config = demo_config("my photos.tar", [])
    assert config.dataset.raw == str(tmp_path / "my photos.tar")
    assert config.dataset.dataset == "s3://datasets/my photos"
    assert config.dataset.resolution > 8
    assert config.pretrain.tracking.model_name != demo_config(None, []).pretrain.tracking.model_name
    assert demo_config("s3://bucket/photos/", []).dataset.dataset == "s3://datasets/photos"


@pytest.mark.parametrize(
    ("raw", "override", "message"),
    [
        ("no/such/folder", "pretrain.steps=7", "no/such/folder: nothing is there"),
        (None, "pretrain.widht=64", "unknown field pretrain.widht"),
        (None, "dataset.resolution=7", "resolution is 7"),
    ],
)
def test_mistakes_are_reported_before_anything_is_started(raw: str | None, override: str, message: str) -> None:
    with pytest.raises(IgptError, match=message):
        demo_config(raw, [override])


def test_every_model_that_the_docs_name_is_registered_by_the_demo_or_by_a_command_of_its_page() -> None:
    of_the_demo = demo_config(None, []).pretrain.tracking.model_name
    pages = sorted([*(ROOT / "docs").glob("*.md"), *(ROOT / "infra").glob("*.md"), ROOT / "README.md"])
    named = []
    for page in pages:
        text = page.read_text()
        known = {of_the_demo, "NAME", "...", *re.findall(r"igpt models import .*--name ([\w-]+)", text)}
        for uri in re.finditer(r"models:/([\w.-]+)(?:[@/](\w+))?", text):
            name, version = uri.groups()
            assert name in known, f"{page.name} names {uri[0]}"
            # The demo registers version 1 as candidate, and promotes nothing.
            there = {"candidate", "1"}
            if name == "NAME" or f"models promote {name}" in text[max(0, uri.start() - 1000) : uri.end() + 1000]:
                there.add("champion")
            assert version in there or name == "...", f"{page.name}: {uri[0]}"
            named.append(name)
    assert of_the_demo in named and len(named) > 5
