"""The code stored with a registered model: all modules that it imports, directly or not, and no others."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from igpt_model import registered
from igpt_model.registry import code_bundle
from igpt_model.registry.code_bundle import copy_code
from igpt_model.registry.serving import write_files
from tests.igpt_model.registry.test_serving import make, make_bundle, make_head
from tests.rigs.environments import variables, without_us

PROGRAM = """
import importlib, json, sys
import numpy as np

model = importlib.import_module(sys.argv[2] + ".igpt_model.registered")._load_pyfunc(sys.argv[1])
images = np.array(json.load(sys.stdin), np.uint8)
print(json.dumps({
    "features": model.predict(images, {"all_layers": True}).tolist(),
    "classify": model.predict(images, {"task": "classify"}).to_numpy().tolist(),
    "drawn": [model.predict(images, {"task": task}).tolist() for task in ("complete", "sample", "score")],
    "project_modules": {
        name: module.__file__
        for name, module in sys.modules.items()
        if name.split(".")[0] == sys.argv[2]
    },
    "packages": sorted({name.split(".")[0] for name in sys.modules}),
}))
"""


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """The package of a version's code."""
    package = copy_code(registered.__name__, tmp_path / "code")
    assert package.parent == tmp_path / "code"
    return package


def test_the_stored_code_works_where_the_project_is_not_installed(
    code: Path, photos: np.ndarray, tmp_path: Path
) -> None:
    programs, data, images = without_us(tmp_path / "environment"), tmp_path / "data", photos[[0, 70], :48]
    data.mkdir()
    write_files(data, make_bundle(), 1, make_head())
    done = subprocess.run(
        [str(programs / "python"), "-c", PROGRAM, str(data), code.name],
        input=json.dumps(images.tolist()),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**variables(programs, tmp_path), "PYTHONPATH": str(code.parent)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers, model = json.loads(done.stdout.splitlines()[-1]), make()
    assert np.array(answers["features"]) == pytest.approx(model.predict(images, {"all_layers": True}), abs=1e-5)
    assert np.array(answers["classify"]) == pytest.approx(model.predict(images, {"task": "classify"}), abs=1e-5)
    assert [np.shape(drawn) for drawn in answers["drawn"]] == [(2, 1, 8, 8, 3), (1, 8, 8, 3), (2,)]
    # Exactly the stored modules are loaded.
    assert {Path(file) for file in answers["project_modules"].values()} == set(code.rglob("*.py"))
    assert (
        f"{code.name}.igpt_model.registry.serving" in answers["project_modules"]
        and f"{code.name}.pipeline.images.palette" in answers["project_modules"]
    )
    assert not {"igpt_model", "pipeline", "flows", "ray", "prefect"} & set(answers["packages"])


def test_every_folder_is_a_package(code: Path) -> None:
    folders = {path.parent for path in code.rglob("*.py")}
    assert len(folders) > 4 and all((folder / "__init__.py").exists() for folder in folders)


def test_the_package_is_named_by_its_code(code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert copy_code(registered.__name__, tmp_path / "again").name == code.name
    change_code(
        monkeypatch, tmp_path, "igpt_model.registry.serving", '("seed", DataType.long, 0)', '("seed", DataType.long, 7)'
    )
    other = copy_code(registered.__name__, tmp_path / "other")
    assert other.name != code.name
    assert other.name.isidentifier() and code.name.isidentifier()


def change_code(monkeypatch: pytest.MonkeyPatch, folder: Path, module: str, before: str, after: str) -> None:
    """Let `copy_code` see another text of a module, as of another commit."""
    source = code_bundle._source
    path = source(module)
    assert path is not None and before in path.read_text()
    changed = folder / f"{module}.py"
    changed.write_text(path.read_text().replace(before, after))
    monkeypatch.setattr(code_bundle, "_source", lambda name: changed if name == module else source(name))


@pytest.mark.parametrize(
    "statement", ["import pipeline.errors, pipeline.hashing", "import pipeline.errors\n\npipeline.errors"]
)
def test_an_import_that_would_leave_the_package_is_refused(
    statement: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_code(monkeypatch, tmp_path, "igpt_model.registered", "from igpt", f"{statement}\nfrom igpt")
    with pytest.raises(AssertionError, match="write "):
        copy_code("igpt_model.registered", tmp_path / "other")
