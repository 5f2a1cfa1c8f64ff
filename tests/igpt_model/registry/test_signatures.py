"""Signatures of models: what was signed is accepted, and any other folder is refused in a line that says why."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from igpt_model.registry import signatures
from igpt_model.registry.signatures import (
    FILE,
    SignatureError,
    TrustedKeys,
    UnsignedError,
    key_id,
    line_of,
    public_key_of,
    read_keys,
    sign,
    verify,
)
from tests.compatibility.earlier import copy

KEY, OTHER = bytes(range(32)), bytes(range(1, 33))
PUBLIC, OTHERS = public_key_of(KEY), public_key_of(OTHER)
BOTH = read_keys(f"# ours\n\n{line_of(PUBLIC, 'since May')}\n{line_of(OTHERS)}\n")


def version(folder: Path, key: bytes = KEY, model: str = "m-1") -> Path:
    """A version that earlier code registered, signed."""
    folder = copy(folder, "model") / "model"
    assert sign(folder, key, model) == key_id(public_key_of(key))
    return folder


def tampered(kind: str, folder: Path) -> None:
    code, data = folder / "code", folder / "data" / "image_gpt"
    match kind:
        case "changed code":
            (code / "pipeline" / "errors.py").open("a").write("import os\n")
        case "changed description":
            text = (folder / "MLmodel").read_text()
            (folder / "MLmodel").write_text(text.replace("igpt_model.registered", "os"))
        case "changed weights":
            path = next(data.glob("*.safetensors"))
            path.write_bytes(path.read_bytes()[:-1] + b"x")
        case "changed requirements":
            (folder / "requirements.txt").write_text("evil\n")
        case "added module":
            (code / "numpy.py").write_text("raise SystemExit\n")
        case "added hidden file":
            (code / "igpt_model" / ".x").touch()
        case "added compiled code":
            (code / "pipeline" / "__pycache__").mkdir()
            (code / "pipeline" / "__pycache__" / "errors.cpython-311.pyc").touch()
        case "missing file":
            next(data.glob("*.npy")).unlink()
        case "link":
            (code / "x.py").symlink_to("/etc/passwd")
        case "link to a folder":
            shutil.move(code, folder.parent)
            code.symlink_to(folder.parent / "code")
        case "pipe":
            os.mkfifo(code / "x.py")
        case "signature of another version":
            other = version(folder.parent / "other")
            (other / "MLmodel").write_text("x")
            sign(other, KEY, "m-2")
            shutil.copyfile(other / FILE, folder / FILE)
        case "changed list":
            path = folder / FILE
            path.write_text(path.read_text().replace("m-1", "m-2"))
        case "key of another":
            path = folder / FILE
            path.write_text(path.read_text().replace(key_id(PUBLIC), key_id(OTHERS)))
        case "linked signature":
            shutil.move(folder / FILE, folder.parent / FILE)
            (folder / FILE).symlink_to(folder.parent / FILE)


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("changed code", "'code/pipeline/errors.py' was changed"),
        ("changed description", "'MLmodel' was changed"),
        ("changed weights", "safetensors' was changed"),
        ("changed requirements", "'requirements.txt' was changed"),
        ("added module", "'code/numpy.py' was added"),
        ("added hidden file", "'code/igpt_model/.x' was added"),
        ("added compiled code", "errors.cpython-311.pyc' was added"),
        ("missing file", ".npy' is missing"),
        ("link", "'code/x.py' is neither a file nor a folder"),
        ("link to a folder", "'code' is neither a file nor a folder"),
        ("pipe", "'code/x.py' is neither a file nor a folder"),
        ("signature of another version", "'MLmodel' was changed"),
        ("changed list", f"its signature is not one of key {key_id(PUBLIC)}"),
        ("key of another", f"its signature is not one of key {key_id(OTHERS)}"),
        ("linked signature", "it has no signature"),
    ],
)
def test_any_other_folder_than_the_signed_one_is_refused(kind: str, line: str, tmp_path: Path) -> None:
    folder = version(tmp_path)
    assert verify(folder, BOTH).model == "m-1"
    tampered(kind, folder)
    with pytest.raises(SignatureError) as refused:
        verify(folder, BOTH)
    assert line in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "text",
    ["", "x", "{}", "[]", '{"key": 1}', "[" * 100_000, '{"key": "k", "signed": "{}", "signature": "?"}'],
)
def test_a_damaged_signature_is_refused(text: str, tmp_path: Path) -> None:
    folder = version(tmp_path)
    (folder / FILE).write_text(text)
    with pytest.raises(SignatureError, match="damaged"):
        verify(folder, BOTH)


def test_several_keys_count_until_they_are_withdrawn(tmp_path: Path) -> None:
    for key in (KEY, OTHER):
        folder = version(tmp_path / key.hex(), key)
        own = key_id(public_key_of(key))
        assert verify(folder, BOTH) == signatures.Signed(key=own, model="m-1")
        for trusted, line in (
            (TrustedKeys(keys={i: k for i, k in BOTH.keys.items() if i != own}), f"its key '{own}' is unknown here"),
            (TrustedKeys(keys=BOTH.keys, withdrawn=frozenset([own])), f"its key {own} was withdrawn"),
        ):
            with pytest.raises(SignatureError, match=line):
                verify(folder, trusted)


def test_a_version_of_before_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(UnsignedError):
        verify(copy(tmp_path, "model") / "model", BOTH)


def test_what_mlflow_adds_when_it_downloads_a_version_does_not_count(tmp_path: Path) -> None:
    folder = version(tmp_path)
    (folder / "registered_model_meta").write_text("model_name: m\n")
    verify(folder, BOTH)
    (folder / "code" / "registered_model_meta").touch()
    with pytest.raises(SignatureError, match="was added"):
        verify(folder, BOTH)


@pytest.mark.parametrize(
    "line", ["x", "trusted", "trusted x", "trusted AAAA", "withdrawn x", "withdrawn 00", f"Trusted {PUBLIC.hex()}"]
)
def test_a_file_of_keys_has_no_other_lines(line: str) -> None:
    with pytest.raises(ValueError, match="line 2 is neither `trusted PUBLIC_KEY` nor `withdrawn ID_OF_A_KEY`"):
        read_keys(f"# keys\n{line}\n")


def test_keys_and_what_was_withdrawn_are_read() -> None:
    keys = read_keys(f"{line_of(PUBLIC)}\nwithdrawn {key_id(OTHERS).upper()} leaked in May\n")
    assert keys == TrustedKeys(keys={key_id(PUBLIC): PUBLIC}, withdrawn=frozenset([key_id(OTHERS)]))


@pytest.mark.parametrize(
    ("change", "arguments", "code", "line"),
    [
        (lambda folder: None, [], 0, f"is model m-1, as key {key_id(PUBLIC)} has signed it"),
        (lambda folder: None, ["m-1"], 0, "is model m-1"),
        (lambda folder: None, ["m-2"], 1, "do not load this model: it is signed as model 'm-1', another one"),
        (lambda folder: tampered("changed code", folder), [], 1, "do not load this model: 'code/pipeline/errors.py'"),
        (lambda folder: (folder / FILE).unlink(), [], 1, "do not load this model: it has no signature"),
        (lambda folder: shutil.rmtree(folder), [], 1, "do not load this model: "),
    ],
)
def test_a_consumer_needs_this_file_alone(
    change: Callable[[Path], None], arguments: list[str], code: int, line: str, tmp_path: Path
) -> None:
    folder, tool, keys = version(tmp_path), tmp_path / "alone" / "signatures.py", tmp_path / "keys"
    change(folder)
    tool.parent.mkdir()
    shutil.copyfile(signatures.__file__, tool)
    keys.write_text(line_of(PUBLIC))
    command = [sys.executable, "-I", str(tool), str(folder), str(keys), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == code and line in done.stdout + done.stderr
    assert (done.stdout + done.stderr).count("\n") == 1
