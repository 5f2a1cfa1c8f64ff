"""The config of a refresh from files and overrides, and the one-line error for each mistake."""

from pathlib import Path

import pytest
import yaml

from flows.config.refresh import RefreshConfig
from igpt_model.config import PretrainConfig
from pipeline.errors import IgptError
from pipeline.typed_config import config_file

GOOD = {"dataset": {"raw": "s3://raw/x", "dataset": "s3://datasets/x"}, "pretrain": {"runs": "s3://runs"}}


def load(fields: dict, *overrides: str) -> RefreshConfig:
    return config_file.load_fields(RefreshConfig, fields, overrides)


def test_a_file_and_overrides_make_a_typed_config(tmp_path: Path) -> None:
    path = tmp_path / "refresh.yaml"
    path.write_text(yaml.safe_dump(GOOD))
    overrides = ["pretrain.optimizer.steps=7", "pretrain.seed=3", "dataset.min_size=null", "probe.strengths=[1.0]"]
    config = config_file.load(RefreshConfig, path, overrides)
    assert (config.pretrain.optimizer.steps, config.pretrain.optimizer.seed) == (7, 3)
    assert (config.dataset.min_size, config.probe.strengths) == (None, (1.0,))
    assert config.dataset.raw == "s3://raw/x"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (
            "dataset.resolutions=32",
            "unknown field dataset.resolutions, perhaps dataset.resolution; `igpt config refresh` shows the known ones",
        ),
        ("dataset.resolution=33", "dataset.resolution is 33: it must be an even number from 4 to 256"),
        ("dataset.colours=1", "dataset.colours is 1: it must be from 2 to 65536"),
        ("dataset.resolution=big", "dataset.resolution is 'big'"),
        ("pretrain.width=100", "width 100 is not divisible by heads"),
        ("pretrain.preset=gpt-5", "pretrain.model.preset is 'gpt-5'"),
        ("pretrain.workers=0", "pretrain.execution.workers is 0: it must be at least 1"),
        ("pretrain.dataset=s3://other", "pretrain.data.dataset is 's3://other': in a refresh it is the dataset just"),
        ("probe.checkpoints=all", "probe.checkpoints is all: a refresh probes the new model"),
        ("pretrain.class_conditional=true", "is given the class"),
        ("pretrain.model_name=a/b", "model_name is 'a/b': MLflow takes names"),
        ("pretrain.model_name=a:b", "model_name is 'a:b': MLflow takes names"),
        ("pretrain.model_name=..", "model_name is '..': MLflow takes names"),
        ("pretrain.model_name=' '", "model_name is ' ': MLflow takes names"),
        (f"pretrain.model_name={'m' * 251}", "model_name has 251 characters: it must have at most 250"),
        (f"pretrain.experiment={'e' * 251}", "experiment has 251 characters: it must have at most 250"),
        ("steps", "is not an override"),
        ("steps=5", "unknown field steps"),
        ("dataset.raw.x=5", "raw has no fields of its own"),
        ("dataset.test_fraction=1", "leave nothing to train on"),
        ("probe.strengths=[-1]", "probe.strengths.0 is -1.0: it must be above 0"),
        ("probe.strengths=[]", "strengths is empty"),
        ("probe.register=true", "probe.register is set: a refresh registers the model with its probe anyway"),
        ("probe.fine_tune.batch=0", "probe.fine_tune.batch is 0: it must be at least 1"),
        ("unfinished.earlier=drop", "unfinished.earlier is 'drop'"),
        ("unfinished.earlier=abandon", "abandon needs a reason, which is recorded"),
        ("unfinished.reason=the labels were wrong", "earlier is finish and reason is 'the labels were wrong'"),
        ("pretrain.max_failures=0", "pretrain.execution.max_failures is 0: it must be at least 1"),
        ("pretrain.parent=igpt@champion", "name a version by its number or an alias"),
        ("promotion.min_probe_accuracy=2", "promotion.min_probe_accuracy is 2.0: it must be from 0 to 1"),
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
    with pytest.raises(IgptError, match=r"dataset\.raw is missing"):
        load({"pretrain": {"runs": "s3://runs"}})
    with pytest.raises(IgptError, match=r"pretrain\.keeping\.runs is missing"):
        load({"dataset": GOOD["dataset"]})


def test_a_misspelt_field_is_named_rather_than_the_one_it_leaves_missing() -> None:
    with pytest.raises(IgptError, match=r"unknown field pretrain; `igpt config pretrain` shows the known ones"):
        config_file.load(PretrainConfig, None, ["pretrain.runs=s3://runs"])


def test_an_invalid_value_is_reported_with_its_file(tmp_path: Path) -> None:
    path = tmp_path / "pretrain.yaml"
    path.write_text("dataset: d\nruns: r\nsteps: 0\n")
    with pytest.raises(IgptError, match=r"pretrain\.yaml: optimizer\.steps is 0"):
        config_file.load(PretrainConfig, path)
