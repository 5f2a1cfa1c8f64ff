"""Configuration files and overrides: what they make, and the one line for each mistake."""

from pathlib import Path

import pytest
import yaml

from flows.config import load as configuration
from flows.config.load import RefreshConfig
from igpt_model.config import PretrainConfig
from pipeline.errors import IgptError

GOOD = {"dataset": {"raw": "s3://raw/x", "dataset": "s3://datasets/x"}, "pretrain": {"runs": "s3://runs"}}


def load(fields: dict, *overrides: str) -> RefreshConfig:
    return configuration.load_fields(RefreshConfig, fields, overrides)


def test_a_file_and_overrides_make_a_typed_config(tmp_path: Path) -> None:
    path = tmp_path / "refresh.yaml"
    path.write_text(yaml.safe_dump(GOOD))
    config = configuration.load(
        RefreshConfig, path, ["pretrain.steps=7", "dataset.min_size=null", "probe.strengths=[1.0]"]
    )
    assert (config.pretrain.steps, config.dataset.min_size, config.probe.strengths) == (7, None, (1.0,))
    assert config.dataset.raw == "s3://raw/x"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("dataset.resolutions=32", "unknown field dataset.resolutions"),
        ("dataset.resolution=33", "resolution is 33: it must be an even number"),
        ("dataset.colours=1", "colours is 1: it must be 2 to 65536"),
        ("dataset.resolution=big", "dataset.resolution is 'big'"),
        ("pretrain.width=100", "width 100 is not divisible by heads"),
        ("pretrain.preset=gpt-5", "pretrain.preset is 'gpt-5'"),
        ("pretrain.workers=0", "workers is 0: it must be at least 1"),
        ("pretrain.dataset=s3://other", "leave it out"),
        ("pretrain.class_conditional=true", "are told the class"),
        ("steps", "is not an override"),
        ("dataset.test_fraction=1", "leave nothing to train on"),
    ],
)
def test_each_mistake_is_one_line_with_the_value(override: str, expected: str) -> None:
    overrides = [override, "pretrain.heads=8"] if "width" in override else [override]
    with pytest.raises(IgptError) as caught:
        load(GOOD, *overrides)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_field_is_named() -> None:
    with pytest.raises(IgptError, match=r"dataset\.raw is missing"):
        load({"dataset": {"dataset": "s3://d"}, "pretrain": {"runs": "s3://runs"}})


def test_a_misspelt_field_is_named_rather_than_the_one_that_is_missing_by_it() -> None:
    with pytest.raises(IgptError, match=r"unknown field pretrain; `igpt config pretrain` prints the known ones"):
        configuration.load(PretrainConfig, None, ["pretrain.runs=s3://runs"])


@pytest.mark.parametrize("text", ["a: [", "- 1", "just words"])
def test_a_file_that_is_no_config_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(IgptError, match=r"bad\.yaml"):
        configuration.load(RefreshConfig, path)


def test_a_value_that_does_not_go_is_told_with_its_file(tmp_path: Path) -> None:
    path = tmp_path / "pretrain.yaml"
    path.write_text("dataset: d\nruns: r\nsteps: 0\n")
    with pytest.raises(IgptError, match=r"pretrain\.yaml: steps is 0"):
        configuration.load(PretrainConfig, path)


def test_the_printed_config_loads_once_its_blanks_are_filled(tmp_path: Path) -> None:
    path = tmp_path / "printed.yaml"
    path.write_text(configuration.describe(RefreshConfig))
    required = ["dataset.raw=s3://raw/x", "dataset.dataset=s3://datasets/x", "pretrain.runs=s3://runs"]
    assert configuration.load(RefreshConfig, path, required) == load(GOOD)


def test_every_field_has_its_sentence() -> None:
    lines = configuration.describe(RefreshConfig).splitlines()
    for before, line in zip(["", *lines], lines, strict=False):
        assert line.lstrip().startswith("#") or before.lstrip().startswith("#"), line


def test_the_name_of_a_run_depends_on_what_decides_its_weights_alone() -> None:
    base = PretrainConfig(runs="r")
    assert base.run_name("a") == PretrainConfig(runs="elsewhere", workers=1, keep_last=9).run_name("a")
    others = [
        PretrainConfig(runs="r", seed=1),
        PretrainConfig(runs="r", steps=2),
        PretrainConfig(runs="r", preset="tiny"),
        PretrainConfig(runs="r", objective="masked"),
        PretrainConfig(runs="r", flip=True),
    ]
    names = {base.run_name("a"), base.run_name("b"), *(other.run_name("a") for other in others)}
    assert len(names) == 7
    assert base.run_name("a") == PretrainConfig(runs="r", compile=True, micro_batch=4).run_name("a")


def test_a_run_of_before_is_found_again() -> None:
    """Fields that came later do not change the name of a run that leaves them out."""
    assert PretrainConfig(runs="r", preset="tiny", steps=500).run_name("a" * 64) == "tiny-c6d8858b2252"
