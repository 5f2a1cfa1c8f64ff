"""`igpt pretrain`, `python -m igpt_model.train`, stored parameters and `igpt deploy` read a value the same way."""

import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from flows.cli import options
from igpt_model import train
from igpt_model.config import PretrainConfig
from igpt_model.training import standalone
from pipeline.errors import IgptError
from pipeline.typed_config import config_file, values

# A field, its text in a file or an override, and the value read from it or part of the error message.
SITUATIONS = [
    ("learning_rate", "1e-3", 0.001),  # text to YAML 1.1
    ("learning_rate", "1.5E-4", 0.00015),
    ("learning_rate", "1", 1.0),
    ("learning_rate", "'1e-3'", 0.001),
    ("learning_rate", "null", None),
    ("learning_rate", "~", None),
    ("learning_rate", ".nan", "'.nan': it must be a number"),
    ("learning_rate", "inf", "'inf': it must be a number"),
    ("learning_rate", "yes", "'yes': it must be a number"),
    ("learning_rate", "-1e-3", "-0.001: it must be above 0"),
    ("steps", "1_000", 1000),
    ("steps", "1e4", 10_000),
    ("steps", "10.0", 10),
    ("steps", "010", "'010': it must be a whole number"),  # 8 to YAML 1.1, 10 to YAML 1.2
    ("steps", "0x10", "'0x10': it must be a whole number"),
    ("steps", "1:30", "'1:30': it must be a whole number"),  # 90 to YAML 1.1
    ("steps", "1.5", "'1.5': it must be a whole number"),
    ("steps", "true", "'true': it must be a whole number"),
    ("steps", "null", "null: it must be a whole number"),
    ("steps", "2026-11-26", "'2026-11-26': it must be a whole number"),
    ("steps", "0", "0: it must be at least 1"),
    ("steps", "[1]", "it must be a whole number"),
    ("use_gpu", "yes", True),
    ("use_gpu", "off", False),
    ("use_gpu", "False", False),
    ("use_gpu", "1", "'1': it must be true or false"),
    ("use_gpu", "null", "null: it must be true or false"),
    ("experiment", "yes", "yes"),
    ("experiment", "2026-11-26", "2026-11-26"),
    ("experiment", "010", "010"),
    ("experiment", "1e-3", "1e-3"),
    ("experiment", "null", "null: it must be text"),
    ("experiment", '"null"', "null"),
    ("experiment", "''", "is empty: give it a value"),
    ("name", "null", None),
    ("name", "1_000", "1_000"),
    ("preset", "tiny", "tiny"),
    ("preset", "igpt", "'igpt': it must be tiny or small or igpt-s or igpt-m or igpt-l or igpt-xl"),
    ("layers", "2", 2),
    ("layers", "''", None),
    ("cache", "''", None),
    ("parent", "models:/igpt/latest", "name a version by its number"),
    ("stepz", "5", "unknown field stepz, perhaps steps; `igpt config pretrain` shows the known ones"),
]


class StopError(Exception):
    """Ends a training before it begins; carries its config."""


def pretrain_reads(path: Path, overrides: list[str], monkeypatch: pytest.MonkeyPatch) -> PretrainConfig:
    """The config that `igpt pretrain` passes to its flow."""
    monkeypatch.setattr(options.preflight, "check_prefect", lambda url: None)
    monkeypatch.setattr(options.settings, "load", lambda: type("Services", (), {"prefect_api_url": ""}))
    return options.read_config(PretrainConfig, path, overrides, path.parent)


def training_reads(
    path: Path, overrides: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> PretrainConfig:
    """The config that `python -m igpt_model.train` trains with."""

    def stop(config: PretrainConfig) -> None:
        raise StopError(config)

    monkeypatch.setattr(standalone, "worker", stop)
    monkeypatch.setattr(sys, "argv", ["train", str(path), *overrides])
    try:
        train.main()
    except StopError as stopped:
        return stopped.args[0]
    except SystemExit as ended:
        (line,) = capsys.readouterr().err.splitlines()
        assert ended.code == 2
        raise IgptError(line.removeprefix("igpt: ")) from None
    raise AssertionError("it trained")


def outcome(read: Any, *arguments: Any) -> Any:
    """The config that `read` returns, or the message of its IgptError."""
    try:
        return read(*arguments)
    except IgptError as error:
        assert "\n" not in str(error)
        return str(error)


@pytest.mark.parametrize("where", ["in the file", "in its section", "as an override"])
@pytest.mark.parametrize(("field", "text", "expected"), SITUATIONS, ids=lambda value: str(value)[:24])
def test_both_commands_read_the_same(
    field: str,
    text: str,
    expected: Any,
    where: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, overrides = tmp_path / "config.yaml", []
    content = "dataset: d\nruns: r\n"
    section = values.sections_of(PretrainConfig).get(field)
    if where == "as an override":
        overrides = [f"{field}={text}"]
    elif where == "in its section" and section:
        content = f"{section}: {{{field}: {text}}}\ndataset: d\nruns: r\n"
    else:
        content += f"{field}: {text}\n"
    path.write_text(content)
    ours = outcome(pretrain_reads, path, overrides, monkeypatch)
    theirs = outcome(training_reads, path, overrides, monkeypatch, capsys)
    assert ours == theirs
    if isinstance(ours, str):
        assert isinstance(expected, str) and expected in ours
        assert ours.startswith(f"{path}: ")
        assert field in ours
    else:
        value = ours.flat()[field]
        assert (value, type(value)) == (expected, type(expected))


@pytest.mark.parametrize(
    ("stored", "overrides"),
    [
        ({"learning_rate": "1e-3"}, ["learning_rate=1e-3"]),  # what YAML 1.1 made of it
        ({"learning_rate": 1}, ["learning_rate=1"]),
        ({"steps": 1000, "use_gpu": True, "name": None}, ["steps=1000", "use_gpu=yes", "name=null"]),
        ({"optimizer": {"steps": 5}, "seed": 3}, ["steps=5", "seed=3"]),
        ({"steps": "many"}, ["steps=many"]),
        ({"steps": 0}, ["steps=0"]),
        ({"stepz": 5}, ["stepz=5"]),
        ({"preset": "gpt-5"}, ["preset=gpt-5"]),
        ({"hang_seconds": 5}, ["hang_seconds=5"]),
    ],
    ids=str,
)
def test_stored_parameters_read_as_a_file_does(stored: dict, overrides: list[str]) -> None:
    """Older deployments have flat parameters; Prefect validates them against the signature of the flow."""
    ours = outcome(TypeAdapter(PretrainConfig).validate_python, {"runs": "r", **stored})
    theirs = outcome(config_file.load, PretrainConfig, None, ["runs=r", *overrides])
    assert ours == (theirs.partition(";")[0] if "stepz" in stored else theirs)


def test_json_and_yaml_and_overrides_make_one_config(tmp_path: Path) -> None:
    as_yaml, as_json = tmp_path / "config.yaml", tmp_path / "config.json"
    as_yaml.write_text("keeping:\n  runs: r\nlearning_rate: 1e-3\noptimizer:\n  steps: 1_000\nuse_gpu: yes\n")
    as_json.write_text('{"runs": "r", "optimizer": {"learning_rate": 1e-3, "steps": 1000}, "use_gpu": true}')
    overrides = ["runs=r", "learning_rate=1e-3", "optimizer.steps=1_000", "execution.use_gpu=on"]
    read = [config_file.load(PretrainConfig, path) for path in (as_yaml, as_json)]
    read.append(config_file.load(PretrainConfig, None, overrides))
    assert read[0] == read[1] == read[2]
    assert config_file.load(PretrainConfig, as_yaml, ["steps=5"]).optimizer.steps == 5
    assert config_file.load(PretrainConfig, as_yaml, ["name=", "layers="]).keeping.name is None
    for heading in ("model:", "model: null", "model: ~"):  # with nothing below it
        as_yaml.write_text(f"runs: r\n{heading}\n")
        assert config_file.load(PretrainConfig, as_yaml, ["layers=3"]).model.layers == 3
