"""The files of .github: workflows have minimal rights and pinned actions and call existing targets; forms are valid."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.doctor.verdicts import _PYTHONS

ROOT = Path(__file__).parents[2]
GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
SCHEMAS = {
    "vendor.github-workflows": WORKFLOWS,
    "vendor.dependabot": [GITHUB / "dependabot.yml"],
    "vendor.github-issue-forms": [GITHUB / "ISSUE_TEMPLATE" / name for name in ("bug.yml", "feature.yml")],
    "vendor.github-issue-config": [GITHUB / "ISSUE_TEMPLATE" / "config.yml"],
    "vendor.citation-file-format": [ROOT / "CITATION.cff"],
}


def zizmor(folder: Path) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("zizmor")
    command = [program, "--offline", "--persona=pedantic", "--no-progress", "--color=never", folder]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def steps_of(path: Path) -> list[dict[str, Any]]:
    return [step for job in yaml.safe_load(path.read_text())["jobs"].values() for step in job["steps"]]


def test_zizmor_reports_nothing() -> None:
    checked = zizmor(GITHUB)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize(
    ("right", "wrong", "audit"),
    [
        (re.compile(r"checkout@\w{40}"), "checkout@v7", "unpinned-uses"),
        (re.compile("contents: read"), "contents: write", "excessive-permissions"),
        (re.compile(r"\n        with:\n          persist-credentials: false"), "", "artipacked"),
        (re.compile(r"run: make check .*"), "run: echo ${{ github.event.pull_request.title }}", "template-injection"),
    ],
)
def test_zizmor_reports_each_mistake(tmp_path: Path, right: re.Pattern[str], wrong: str, audit: str) -> None:
    shutil.copytree(GITHUB, tmp_path / ".github")
    path = tmp_path / ".github" / "workflows" / "checks.yml"
    text, count = right.subn(wrong, path.read_text())
    assert count
    path.write_text(text)
    checked = zizmor(tmp_path)
    assert checked.returncode != 0
    assert audit in checked.stdout


@pytest.mark.parametrize("schema", SCHEMAS)
def test_files_match_their_schemas(schema: str) -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, *SCHEMAS[schema]]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


def test_an_action_is_pinned_to_one_commit_with_its_version_beside_it() -> None:
    uses = [line.strip() for path in WORKFLOWS for line in path.read_text().splitlines() if "uses:" in line]
    pinned = [re.fullmatch(r"-? ?uses: ([\w./-]+)@([0-9a-f]{40}) # (v\d+\.\d+\.\d+)", line) for line in uses]
    assert None not in pinned, uses
    actions = {match.groups() for match in pinned if match is not None}
    assert len(actions) == len({action for action, _, _ in actions})


def test_workflows_only_read() -> None:
    for path in WORKFLOWS:
        workflow = yaml.safe_load(path.read_text())
        assert workflow["permissions"] == {"contents": "read"}, path
        assert not any("permissions" in job for job in workflow["jobs"].values()), path
        assert "secrets." not in path.read_text(), path


def test_workflows_call_existing_targets_and_files() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    scripts = "\n".join(step.get("run", "") for path in WORKFLOWS for step in steps_of(path))
    called = set(re.findall(r"\bmake ([a-z-]+)", scripts))
    matrix = yaml.safe_load((GITHUB / "workflows" / "faults.yml").read_text())["jobs"]["faults"]["strategy"]["matrix"]
    assert {"check", "test", "demo"} <= called
    assert called | set(matrix["target"]) <= targets
    files = re.findall(r"\btests/[\w/]+\.py", scripts)
    assert files
    assert [file for file in files if not (ROOT / file).exists()] == []


def test_every_supported_python_and_platform_is_checked() -> None:
    matrix = yaml.safe_load((GITHUB / "workflows" / "checks.yml").read_text())["jobs"]["check"]["strategy"]["matrix"]
    oldest, newest = _PYTHONS
    assert matrix["python"] == [f"3.{minor}" for minor in range(oldest[1], newest[1] + 1)]
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert declared == f">={matrix['python'][0]}"
    assert matrix["machine"] == ["ubuntu-24.04", "ubuntu-24.04-arm", "macos-14", "macos-15"]


def test_the_bug_form_asks_for_the_output_of_igpt_doctor() -> None:
    form = yaml.safe_load((GITHUB / "ISSUE_TEMPLATE" / "bug.yml").read_text())
    (field,) = [field for field in form["body"] if field.get("id") == "doctor"]
    assert "`igpt doctor`" in field["attributes"]["label"]
    assert field["validations"] == {"required": True}
