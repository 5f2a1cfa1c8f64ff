"""The version from pyproject.toml, and the commit from the deployment, the checkout or pip's record."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from flows import version

ROOT = Path(__file__).parents[2]
DECLARED = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@localhost"]
    ended = subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return ended.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of one commit that version.py uses as its checkout."""
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / "file").write_text("a")
    git(folder, "add", "file")
    git(folder, "commit", "-qm", "one")
    git(folder, "tag", "v9.9")  # must not replace the commit
    monkeypatch.setattr(version, "_CHECKOUT", folder)
    return folder


def test_the_program_prints_the_version_and_the_commit(igpt, checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IGPT_GIT_COMMIT", raising=False)
    monkeypatch.setattr(metadata, "version", lambda name: {"igpt-pipeline": "1.2.3"}[name])
    ended = igpt("--version")
    assert (ended.code, ended.out) == (0, f"igpt-pipeline 1.2.3, commit {git(checkout, 'rev-parse', 'HEAD')}\n")
    monkeypatch.setenv("IGPT_GIT_COMMIT", "c0ffee")
    assert igpt("--version").out == "igpt-pipeline 1.2.3, commit c0ffee\n"


def test_a_checkout_with_changes_is_dirty(checkout: Path) -> None:
    (checkout / "file").write_text("b")
    assert version.commit(None) == git(checkout, "rev-parse", "HEAD") + "-dirty"


def test_without_a_checkout_the_commit_is_the_one_pip_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = {"url": "https://localhost/r.git", "vcs_info": {"vcs": "git", "commit_id": "beef"}}
    monkeypatch.setattr(version, "_CHECKOUT", tmp_path)
    for text, expected in ((json.dumps(recorded), "beef"), (json.dumps({"url": "file:///x"}), None), (None, None)):
        files = {"direct_url.json": text}
        monkeypatch.setattr(metadata, "distribution", lambda name, files=files: SimpleNamespace(read_text=files.get))
        assert version.commit(None) == expected


def test_code_is_described_by_its_files_wherever_they_are(tmp_path: Path) -> None:
    def described(name: str) -> dict[str, str]:
        folder = tmp_path / name
        if not folder.exists():
            for package in ("pipeline", "igpt_model", "flows"):
                shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
        code = "import json; from flows import version; print(json.dumps(version.describe_code(None)))"
        environment = {**os.environ, "PYTHONPATH": str(folder)}
        done = subprocess.run([sys.executable, "-c", code], cwd="/", env=environment, capture_output=True, check=True)
        return dict(json.loads(done.stdout))

    one, two = described("one"), described("two")
    assert one["place"].endswith(f":{tmp_path}/one") and two["place"].endswith(f":{tmp_path}/two")
    assert {**one, "place": ""} == {**two, "place": ""} and one["version"] == DECLARED
    (tmp_path / "two" / "pipeline" / "errors.py").write_text("")
    assert described("two")["digest"] != one["digest"]


def test_all_files_with_a_version_have_the_same() -> None:
    mentioned = {
        path: set(re.findall(r"igpt-pipeline:([0-9][0-9.]*)", path.read_text()))
        for path in (ROOT / "infra").rglob("*")
        if path.is_file()
    }
    images = {path.name: versions for path, versions in mentioned.items() if versions}
    assert len(images) >= 5
    assert set().union(*images.values()) == {DECLARED}
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == DECLARED


@pytest.mark.parametrize("code", ["c0ffee0", "c0ffee0-dirty"])
def test_the_commit_is_a_tag_of_runs_and_on_mlflows_page(code: str) -> None:
    assert version.commit_tags(code) == {"igpt.git_commit": code, "mlflow.source.git.commit": "c0ffee0"}
