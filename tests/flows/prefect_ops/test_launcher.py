"""The process of a flow run does not inherit the password that Prefect's worker copies from a file into a variable."""

import os
from pathlib import Path

import pytest

from flows.prefect_ops import launcher
from flows.services.password_files import for_prefect


@pytest.mark.parametrize(
    ("text", "kept"), [(None, True), (for_prefect("igpt:p"), False), ('active = "x"\n[profiles.x]\n', True)]
)
def test_it_is_left_out_when_a_file_has_it(
    text: str | None, kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "igpt:p")
    monkeypatch.delenv("PREFECT_PROFILES_PATH", raising=False)
    if text is not None:
        (tmp_path / "prefect.toml").write_text(text)
        monkeypatch.setenv("PREFECT_PROFILES_PATH", str(tmp_path / "prefect.toml"))
    variables = launcher._environment()
    assert variables.pop("PREFECT_API_AUTH_STRING", None) == ("igpt:p" if kept else None)
    assert variables == {name: value for name, value in os.environ.items() if name != "PREFECT_API_AUTH_STRING"}
