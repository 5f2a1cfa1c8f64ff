"""Versions on an MLflow server are verified before anything of them is imported, with the keys of the settings."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

from flows import trust
from flows.import_model import import_model
from flows.playground.worker import open_model
from igpt_model.registry import signatures
from igpt_model.registry.client import Registry, Version
from igpt_model.registry.register import sign_registered
from igpt_model.registry.signatures import FILE, key_id, line_of, public_key_of
from igpt_model.registry.trust import SIGNED_BY, Signer
from igpt_model.tracking import runs
from pipeline.errors import IgptError
from tests.igpt_model.convert.test_hugging_face import SIZES, random_bundle
from tests.igpt_model.registry.test_signatures import KEY, OTHER

ID = key_id(public_key_of(KEY))
Keys = Callable[..., None]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of an MLflow server, and a model folder in it."""
    folder, before = tmp_path_factory.mktemp("mlflow"), mlflow.get_tracking_uri()
    (folder / "ours").mkdir()
    random_bundle(SIZES["two layers of 8x8"]).save(folder / "ours")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # where MLflow keeps the files of runs
        patch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        try:
            yield folder
        finally:
            mlflow.set_tracking_uri(before)


@pytest.fixture
def uri(server: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(runs, "check_reachable", lambda uri: None)  # it asks over HTTP
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{server}/mlflow.db")
    return f"sqlite:///{server}/mlflow.db"


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Keys:
    """Set which key signs, and the lines of the file of trusted keys; by default one key is both."""

    def choose(signing: bytes | None = KEY, *lines: str) -> None:
        (tmp_path / "signing-key").write_text("" if signing is None else signing.hex())
        (tmp_path / "trusted").write_text("\n".join(lines or [line_of(public_key_of(KEY))]))
        monkeypatch.setenv("IGPT_TRUSTED_KEYS", str(tmp_path / "trusted"))
        monkeypatch.setenv("IGPT_SIGNING_KEY", "" if signing is None else str(tmp_path / "signing-key"))

    choose()
    return choose


@pytest.fixture
def put(server: Path, uri: str) -> Callable[[str], Version]:
    return lambda name: import_model(str(server / "ours"), name=name, tracking_uri=uri).version


def files_of(server: Path, version: Version) -> Path:
    """Where the server keeps the files of a version."""
    (found,) = server.rglob(f"{Registry(f'sqlite:///{server}/mlflow.db').logged_model(version)}/artifacts")
    return found


def test_what_was_registered_opens_silently(keys: Keys, put: Callable[[str], Version], uri: str, server: Path, capsys):
    version = put("signed")
    assert version.tags[SIGNED_BY] == ID and (files_of(server, version) / FILE).is_file()
    assert trust.registry(uri).open(version.uri).model.config.resolution == 8
    assert not list(files_of(server, version).rglob("__pycache__"))
    assert capsys.readouterr().out == ""


ATTACKS = {
    "changed code": "was changed after it was signed",
    "changed description": "'MLmodel' was changed",
    "added file": "'code/sitecustomize.py' was added",
    "missing file": "is missing; do not use",
    "signature of another version": "was changed after it was signed",
    "files of another version": "it holds the signed files of another version (m-",
    "signature removed": f"though key {ID} signed it",
    "signed by another": "is unknown here",
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_whoever_writes_the_bucket_runs_no_code_where_models_are_opened(
    attack: str, keys: Keys, put: Callable[[str], Version], uri: str, server: Path, tmp_path: Path
) -> None:
    version = put(attack.replace(" ", "-"))
    files, ran = files_of(server, version), tmp_path / "ran"
    code, evil = next(files.glob("code/*/igpt_model/registered.py")), f"open({str(ran)!r}, 'w')\n"
    match attack:
        case "changed code":
            code.write_text(evil + code.read_text())
        case "changed description":
            (files / "code" / "evil.py").write_text(evil)
            text = (files / "MLmodel").read_text()
            (files / "MLmodel").write_text(text.replace("loader_module: ", "loader_module: evil # "))
        case "added file":
            (files / "code" / "sitecustomize.py").write_text(evil)
        case "missing file":
            code.unlink()
        case "signature of another version":
            shutil.copyfile(files_of(server, put("another")) / FILE, files / FILE)
        case "files of another version":
            shutil.rmtree(files)
            shutil.copytree(files_of(server, put("another")), files)
        case "signature removed":
            (files / FILE).unlink()
            code.write_text(evil + code.read_text())
        case "signed by another":
            code.write_text(evil + code.read_text())
            Signer(private_key=OTHER).sign(files, version.model_id)
    modules = set(sys.modules)
    for open_version in (
        lambda: trust.registry(uri).open(version.uri),
        lambda: trust.registry(uri).open_probed(version.uri),
        lambda: trust.registry(uri).palette(version),
        lambda: trust.registry(uri).download(version, tmp_path / "downloaded"),
        lambda: open_model(version.uri, tmp_path / "of the page"),
    ):
        with pytest.raises(IgptError) as refused:
            open_version()
        assert ATTACKS[attack] in str(refused.value) and "\n" not in str(refused.value)
    assert not ran.exists()
    assert not [name for name in set(sys.modules) - modules if name.startswith(("igpt_code_", "evil"))]


def test_keys_change_and_are_withdrawn(keys: Keys, put: Callable[[str], Version], uri: str) -> None:
    first = put("rotated")
    both = [line_of(public_key_of(key)) for key in (KEY, OTHER)]
    keys(OTHER, *both)
    second = put("rotated-again")
    assert second.tags[SIGNED_BY] == key_id(public_key_of(OTHER)) != first.tags[SIGNED_BY]
    for version in (first, second):
        trust.registry(uri).open(version.uri)
    keys(OTHER, *both, f"withdrawn {ID}")
    trust.registry(uri).open(second.uri)
    with pytest.raises(IgptError, match=f"its key {ID} was withdrawn; do not use"):
        trust.registry(uri).open(first.uri)
    signer = trust.signer()
    assert signer is not None
    assert sign_registered(trust.registry(uri), first, signer).tags[SIGNED_BY] == second.tags[SIGNED_BY]
    trust.registry(uri).open(first.uri)


def test_a_version_of_before_opens_with_a_warning_and_can_be_signed(
    keys: Keys, put: Callable[[str], Version], uri: str, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys(None)
    version = put("of-before")
    assert SIGNED_BY not in version.tags
    trust.registry(uri).open(version.uri)
    assert capsys.readouterr().out.startswith(f"warning: {version.uri} is not signed; whoever can write")
    monkeypatch.setenv("IGPT_REQUIRE_SIGNED", "true")
    with pytest.raises(IgptError, match="is not signed, and IGPT_REQUIRE_SIGNED is set"):
        trust.registry(uri).open(version.uri)
    sign_registered(trust.registry(uri), version, Signer(private_key=KEY))
    trust.registry(uri).open(version.uri)
    assert capsys.readouterr().out == ""


def test_a_copy_of_a_version_is_signed_with_it(keys: Keys, put: Callable[[str], Version], uri: str) -> None:
    version = put("copied")
    MlflowClient(uri).copy_model_version(version.uri, "copies")
    assert trust.registry(uri).open("copies/1").model.config.resolution == 8


def test_the_line_for_consumers_runs_as_the_page_has_it(
    keys: Keys, put: Callable[[str], Version], uri: str, server: Path, tmp_path: Path
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
    (line,) = [line for line in page.splitlines() if line.endswith("python signatures.py model trusted-keys")]
    version = put("consumed")
    folder = tmp_path / "consumer"
    folder.mkdir()
    shutil.copyfile(signatures.__file__, folder / "signatures.py")
    shutil.copyfile(tmp_path / "trusted", folder / "trusted-keys")
    # The server's files are below its folder, by relative paths.
    line = line.replace("models:/igpt-digits@candidate", version.uri)
    line = line.replace("mlflow artifacts", f"(cd {server} && mlflow artifacts").replace(
        "-d model", f"-d {folder}/model)"
    )
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", line],
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"model is model {version.model_id}, as key {ID} has signed it" in done.stdout


@pytest.mark.parametrize(
    ("signing", "trusted", "said"),
    [
        (None, None, "signing-key cannot be read: No such file or directory; correct IGPT_SIGNING_KEY"),
        ("", "", "does not hold 64 hexadecimal digits"),
        ("00" * 31, "", "does not hold 64 hexadecimal digits"),
        ("0" * 64, None, "trusted cannot be read: No such file or directory; correct IGPT_TRUSTED_KEYS"),
        ("0" * 64, "x", "trusted: line 1 is neither `trusted PUBLIC_KEY` nor"),
    ],
)
def test_files_that_cannot_be_used_are_told_in_one_line(
    signing: str | None, trusted: str | None, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, variable, text in (
        ("signing-key", "IGPT_SIGNING_KEY", signing),
        ("trusted", "IGPT_TRUSTED_KEYS", trusted),
    ):
        monkeypatch.setenv(variable, str(tmp_path / name))
        if text is not None:
            (tmp_path / name).write_text(text)
    with pytest.raises(IgptError, match=said):
        trust.signer()
        trust.trust()
