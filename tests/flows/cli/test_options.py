"""What every command does first: the folder of the services, and a config that is checked before anything is slow."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from flows.cli import options
from flows.terminal.console import console
from pipeline.config import DatasetConfig
from pipeline.errors import IgptError


@pytest.fixture
def activated(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders whose services this process was configured for."""
    activated: list[Path] = []
    monkeypatch.setattr(options.settings, "activate", activated.append)
    return activated


def test_the_folder_is_the_given_one_or_that_of_the_environment(
    activated: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IGPT_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert options.prepare(None) == tmp_path / "home"
    assert options.prepare(Path("mine")) == tmp_path / "mine"
    assert activated == [tmp_path / "home", tmp_path / "mine"]


def test_with_json_progress_goes_to_standard_error(activated: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    for as_json in (True, False):
        options.prepare(None, as_json=as_json)
        console.print("progress")
        said = capsys.readouterr()
        assert (said.err, said.out)[not as_json] == "progress\n"
        assert (said.err, said.out)[as_json] == ""


def test_a_config_is_read_before_prefect_is_asked(
    activated: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(options.preflight, "check_prefect", asked.append)
    monkeypatch.setattr(options.settings, "load", lambda: SimpleNamespace(prefect_api_url="http://p/api"))
    with pytest.raises(IgptError, match="dataset is missing"):
        options.read_config(DatasetConfig, None, ["raw=r"], tmp_path)
    assert asked == []
    (tmp_path / "config.yaml").write_text("raw: r\ndataset: d\n")
    config = options.read_config(DatasetConfig, tmp_path / "config.yaml", ["seed=3"], tmp_path)
    assert config == DatasetConfig(raw="r", dataset="d", seed=3)
    assert asked == ["http://p/api"] and activated == [tmp_path, tmp_path]
