"""Names of flow runs: from the parameters of a deployment as from those of a call, whatever is left out."""

from types import SimpleNamespace

import pytest

from flows.prefect_ops import names
from flows.pretrain import pretrain
from igpt_model.config import PretrainConfig

CONFIG = PretrainConfig.from_fields(runs="s3://runs/x", dataset="s3://datasets/x", snapshot=7, model_name="igpt")
NESTED = {"data": {"dataset": "s3://datasets/x", "snapshot": 7}, "tracking": {"model_name": "igpt"}}
FLAT = {"dataset": "s3://datasets/x", "snapshot": 7, "model_name": "igpt"}


def name_with(monkeypatch: pytest.MonkeyPatch, config: object) -> str:
    monkeypatch.setattr(names, "flow_run", SimpleNamespace(parameters={"config": config}))
    assert callable(pretrain.flow_run_name)
    return pretrain.flow_run_name()


@pytest.mark.parametrize("config", [CONFIG, NESTED, FLAT])
def test_a_run_is_named_after_what_it_makes(config: object, monkeypatch: pytest.MonkeyPatch) -> None:
    assert name_with(monkeypatch, config) == "train igpt on s3://datasets/x, snapshot 7"


def test_what_has_no_value_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert name_with(monkeypatch, {**FLAT, "snapshot": None}) == "train igpt on s3://datasets/x"
    assert name_with(monkeypatch, "no config") == "train  on"


def test_a_name_is_one_line_of_bounded_length(monkeypatch: pytest.MonkeyPatch) -> None:
    named = name_with(monkeypatch, {**FLAT, "model_name": "a\n\x1b[31m{}" + "b" * 500})
    assert named.startswith(r"train a\n\x1b[31m{}b") and len(named) == 200
