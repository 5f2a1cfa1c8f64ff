"""The code stored with a registered model: all modules that it imports, directly or not, and no others."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from igpt_model import registered
from igpt_model.registry.code_bundle import copy_code
from igpt_model.registry.serving import write_files
from tests.igpt_model.registry.test_serving import make, make_bundle, make_head
from tests.rigs.environments import variables, without_us

PROGRAM = """
import json, sys
import numpy as np
from igpt_model.registered import _load_pyfunc

model = _load_pyfunc(sys.argv[1])
images = np.array(json.load(sys.stdin), np.uint8)
print(json.dumps({
    "features": model.predict(images, {"all_layers": True}).tolist(),
    "classify": model.predict(images, {"task": "classify"}).to_numpy().tolist(),
    "drawn": [model.predict(images, {"task": task}).tolist() for task in ("complete", "sample", "score")],
    "project_modules": {
        name: module.__file__
        for name, module in sys.modules.items()
        if name.split(".")[0] in ("igpt_model", "pipeline", "flows")
    },
    "packages": sorted({name.split(".")[0] for name in sys.modules}),
}))
"""


@pytest.fixture
def code(tmp_path: Path) -> Path:
    packages = copy_code(registered.__name__, tmp_path / "code")
    assert packages == [tmp_path / "code" / name for name in ("igpt_model", "pipeline")]
    return tmp_path / "code"


def test_the_stored_code_works_where_the_project_is_not_installed(
    code: Path, photos: np.ndarray, tmp_path: Path
) -> None:
    programs, data, images = without_us(tmp_path / "environment"), tmp_path / "data", photos[[0, 70], :48]
    data.mkdir()
    write_files(data, make_bundle(), 1, make_head())
    done = subprocess.run(
        [str(programs / "python"), "-c", PROGRAM, str(data)],
        input=json.dumps(images.tolist()),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**variables(programs, tmp_path), "PYTHONPATH": str(code)},
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
        "igpt_model.registry.serving" in answers["project_modules"]
        and "pipeline.images.palette" in answers["project_modules"]
    )
    assert not {"flows", "ray", "prefect"} & set(answers["packages"])


def test_every_folder_is_a_package(code: Path) -> None:
    folders = {path.parent for path in code.rglob("*.py")}
    assert len(folders) > 4 and all((folder / "__init__.py").exists() for folder in folders)
