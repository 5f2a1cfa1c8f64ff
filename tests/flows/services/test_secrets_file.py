"""The file of secrets is taken whole or refused with what is wrong in it, and no message repeats a secret."""

from pathlib import Path

import pytest

from flows.services import secrets_file
from pipeline.errors import IgptError

SECRETS = {name: f"{name.replace('_', '').lower()}{'0123456789' * 3}" for name in secrets_file.NAMES}


def write(folder: Path, secrets: dict[str, str]) -> Path:
    path = folder / "igpt.env"
    path.write_text("# secrets\n\n" + "\n".join(f"{name}={value}" for name, value in secrets.items()) + "\n")
    return path


def test_it_is_read_and_other_lines_are_left_out(tmp_path: Path) -> None:
    assert secrets_file.read(write(tmp_path, {**SECRETS, "RAY_WORKERS": "2"})) == SECRETS


@pytest.mark.parametrize("name", secrets_file.NAMES)
@pytest.mark.parametrize("value", [None, "", "short", "with/slash/0123456789012345678901234567890"])
def test_a_missing_or_unsuitable_one_is_named(name: str, value: str | None, tmp_path: Path) -> None:
    others = {key: text for key, text in SECRETS.items() if key != name}
    path = write(tmp_path, others if value is None else {**others, name: value})
    if name == "AWS_ACCESS_KEY_ID" and value:
        assert secrets_file.read(path)[name] == value
        return
    with pytest.raises(IgptError, match=f"^{name} ") as refused:
        secrets_file.read(path)
    assert not any(secret in str(refused.value) for secret in (*others.values(), value or "missing-from-text"))


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(IgptError) as refused:
        secrets_file.read(write(tmp_path, {}))
    assert all(f"{name} is missing" in str(refused.value) for name in secrets_file.NAMES)
    with pytest.raises(IgptError, match="no-such-file cannot be read: No such file or directory"):
        secrets_file.read(tmp_path / "no-such-file")
