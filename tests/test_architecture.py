"""The import rules of the design: which package may know which, and which library has one door."""

import ast
import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("pipeline", "igpt_model", "flows")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).glob("*.py"))

ALLOWED_PACKAGES = {
    "pipeline": {"pipeline"},
    "igpt_model": {"igpt_model", "pipeline"},
    "flows": {"flows", "igpt_model", "pipeline"},
}
# Of the data side, the model side may use only what needs no cluster; its Ray modules may use the cluster's.
PURE_PIPELINE = {"config", "errors", "images", "lease", "palette", "progress", "shards", "snapshot", "storage"}
# Runs and their curves; what travels with a model and answers where nothing of ours is installed; into the registry and
# out of it.
WITH_MLFLOW = {"tracking", "curve_logger", "registered", "registration", "registry"}
DOORS = {
    "ray": {
        *("pipeline/ray_cluster.py", "pipeline/ray_metrics.py", "igpt_model/ray_train.py", "igpt_model/ray_mailbox.py"),
    },
    "mlflow": {f"igpt_model/{name}.py" for name in WITH_MLFLOW},
    "prefect": {
        f"flows/{name}.py"
        for name in (
            *("build_dataset", "pretrain", "probe", "refresh", "demo"),
            *("scheduled", "exclusive", "flow_runs", "deployments", "termination", "ray_job"),
        )
    },
    "fsspec": {"pipeline/storage.py", "pipeline/bulk.py", "pipeline/s3_filesystem.py"},
    "s3fs": {"pipeline/s3_filesystem.py"},
    "obstore": {"pipeline/bulk.py"},
    "tenacity": {"pipeline/store_errors.py"},
    "torch": {f"igpt_model/{path.name}" for path in (ROOT / "igpt_model").glob("*.py")},
}


def imports_of(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_imports_follow_the_design(path: Path) -> None:
    package = path.parent.name
    relative = f"{package}/{path.name}"
    names = imports_of(path)
    tops = {name.split(".")[0] for name in names}
    assert tops & set(PACKAGES) <= ALLOWED_PACKAGES[package]
    for library, doors in DOORS.items():
        if library in tops:
            assert relative in doors, f"{relative} imports {library}, which only {sorted(doors)} may"
    if package == "igpt_model":
        used = {name.split(".")[1] for name in names if name.startswith("pipeline.")}
        allowed = PURE_PIPELINE | ({"ray_cluster"} if path.name.startswith("ray_") else set())
        classes = {name for name in used if name[0].isupper()}
        assert used - classes <= allowed


def test_environment_variables_are_read_only_in_settings() -> None:
    readers = {
        f"{path.parent.name}/{path.name}"
        for path in MODULES
        if any(word in path.read_text() for word in ("os.environ", "getenv"))
    }
    # service_process.py hands the environment to the processes that it starts.
    assert readers <= {"flows/settings.py", "flows/service_process.py"}


def test_the_readme_tells_what_each_module_is_for() -> None:
    tree = (ROOT / "README.md").read_text()
    named = set(re.findall(r"[\w*]+\.py", tree))
    missing = [
        f"{path.parent.name}/{path.name}"
        for path in MODULES
        if path.name != "__init__.py" and not any(fnmatch(path.name, pattern) for pattern in named)
    ]
    assert not missing
    names = [path.name for path in MODULES]
    gone = [name for name in re.findall(r"^  ((?:[\w*]+\.py ?)+)", tree, re.MULTILINE) for name in name.split()]
    assert len(gone) > 100
    assert not [pattern for pattern in gone if not any(fnmatch(name, pattern) for name in names)]


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_data_side_never_loads_torch() -> None:
    modules = [f"pipeline.{path.stem}" for path in MODULES if path.parent.name == "pipeline"]
    code = f"import importlib, sys\nfor name in {modules!r}: importlib.import_module(name)\nprint(sorted(sys.modules))"
    loaded = run_python(code)
    assert "'pipeline.build'" in loaded
    for heavy in ("'torch'", "'mlflow'", "'prefect'", "'igpt_model'", "'flows'"):
        assert heavy not in loaded


def test_the_command_line_starts_without_what_reads_its_settings_on_import() -> None:
    loaded = run_python("import sys, flows.cli\nprint(sorted(sys.modules))")
    assert "'flows.dataset_commands'" in loaded
    for late in ("'ray'", "'prefect'", "'mlflow'", "'torch'", "'sklearn'"):
        assert late not in loaded


def test_the_model_side_trains_without_ray_mlflow_prefect_and_s3fs(tmp_path: Path) -> None:
    excluded = {"ray_train", "ray_mailbox", "ray_probe", "curves"} | WITH_MLFLOW
    names = [
        f"igpt_model.{path.stem}" for path in MODULES if path.parent.name == "igpt_model" and path.stem not in excluded
    ]
    blocked = (
        *("ray", "mlflow", "prefect", "s3fs", "pydantic", "boto3", "botocore", "webdataset", "matplotlib", "flows"),
        *("obstore", "tenacity"),
    )
    code = f"""
import importlib, sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ImportError(name + " is not here")
sys.meta_path.insert(0, Block())
for name in {names!r}:
    importlib.import_module(name)
import torch
from igpt_model.model_config import ModelConfig
from igpt_model.model import ImageGPT
model = ImageGPT(ModelConfig(layers=1, width=8, heads=2, resolution=4, colours=5))
print(tuple(model(torch.zeros(2, 16, dtype=torch.int64)).shape))
"""
    assert run_python(code).strip() == "(2, 16, 5)"


def test_there_are_no_import_cycles() -> None:
    graph = {
        f"{path.parent.name}.{path.stem}": {
            name for name in imports_of(path) if name.split(".")[0] in PACKAGES and name.count(".") == 1
        }
        for path in MODULES
        if path.stem != "__init__"
    }

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join((*trail, module))
        for imported in graph.get(module, ()):
            visit(imported, (*trail, module))

    for module in graph:
        visit(module, ())
