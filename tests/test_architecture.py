"""The import rules of packages, folders and libraries, and the tables that say which tests belong to a file."""

import ast
import re
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("pipeline", "igpt_model", "flows")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py") if path.name != "__init__.py")

ALLOWED_PACKAGES = {
    "pipeline": {"pipeline"},
    "igpt_model": {"igpt_model", "pipeline"},
    "flows": {"flows", "igpt_model", "pipeline"},
}
# A room (a folder, or a file at the top of a package) imports only from itself and from rooms before it.
ORDER = {
    "pipeline": (
        "one_installation",
        *("operating_system", "garbage", "printable", "errors", "progress", "hashing", "partition", "background"),
        *("typed_config", "store", "cluster", "images", "config", "dataset", "samples", "source", "build", "inspect"),
        "pictures",
        "readers",
        "logs",  # the name of the JSON formatter for logging configurations
    ),
    "igpt_model": (
        *(
            "model",
            "config",
            "worker",
            "convert",
            "inference",
            "data",
            "runs",
            "training",
            "probing",
            "evaluating",
            "batch",
        ),
        "registered",  # stored with a registered model by registry/register.py
        *("registry", "tracking", "train"),
    ),
    "flows": (
        *(
            "version",
            "services",
            "config",
            "terminal",
            "trust",
            "allowed_urls",
            "doctor",
            "prefect_ops",
            "monitor",
            "backup",
            "clean",
            "serving",
            "playground",
        ),
        *("probe_report", "previews"),
        *("evaluate", "batch", "same_images", "import_model"),
        *(
            "build_dataset",
            "pretrain",
            "report",
            "erase",
            "probe",
            "probe_checkpoints",
            "earlier_runs",
            "refresh",
            "scheduled",
            "demo",
            "cli",
        ),
    ),
}
EXCEPTIONS = {
    ("igpt_model/registered.py", "registry"): "the stable name of registry/serving.py",
}
# Of the data side, the model side may use only what needs no cluster; its Ray modules may use the cluster's.
PURE_PIPELINE = {
    *("operating_system", "garbage", "printable", "errors", "progress", "hashing", "partition", "background"),
    *("typed_config", "config", "images", "dataset", "samples", "store"),
}
WITH_MLFLOW = {
    *("igpt_model/registry/client.py", "igpt_model/registry/register.py", "igpt_model/registry/serving.py"),
    *(
        f"igpt_model/tracking/{name}.py"
        for name in ("runs", "curve_logger", "deleted_runs", "erased_pictures", "trained_on")
    ),
    "igpt_model/registry/short_answers.py",
    "flows/serving/replica.py",
    "flows/playground/worker.py",
}
# Whoever imports one of these readers asks for its library; the other modules of the room load none of them.
READERS_WITH_TORCH = {"pipeline/readers/torch_dataset.py", "pipeline/readers/webdataset.py"}
DOORS = {
    "ray": {
        *(f"pipeline/cluster/{name}.py" for name in ("tasks", "metrics", "same_code", "node", "setup_worker")),
        *("igpt_model/training/ray.py", "igpt_model/training/ray_mailbox.py", "pipeline/readers/ray_data.py"),
        *("flows/serving/replica.py", "flows/serving/service.py"),
    },
    "webdataset": {"pipeline/readers/webdataset.py"},
    "mlflow": WITH_MLFLOW,
    "prefect": {
        *(
            f"flows/{name}.py"
            for name in ("build_dataset", "pretrain", "probe", "probe_checkpoints", "refresh", "scheduled", "demo")
        ),
        *(
            f"flows/prefect_ops/{name}.py"
            for name in (
                *("artifacts", "lease", "flow_runs", "deployments", "termination", "ray_job", "deployment_runs"),
                *("names", "progress_page", "old_flow_runs"),
                *("driver", "events", "event_order", "outage"),
            )
        ),
    },
    "fsspec": {f"pipeline/store/{name}.py" for name in ("objects", "bulk", "s3")},
    "s3fs": {"pipeline/store/s3.py"},
    "obstore": {"pipeline/store/s3_reads.py"},
    "nicegui": {
        f"flows/playground/{name}.py" for name in ("server", "page", "panel", "results", "controls", "widgets")
    },
    "prometheus_client": {"flows/monitor/exporter.py"},
    "tenacity": {"pipeline/store/errors.py"},
}


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


MODULES = {module_of(path): path for path in FILES}


def room_of(module: str) -> str:
    """The folder or file directly below the package."""
    return module.split(".")[1]


def imports_of(path: Path) -> set[str]:
    """Modules and names that a file imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def ours(path: Path) -> set[str]:
    """Our modules that a file imports."""
    return {name for name in imports_of(path) if name in MODULES}


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_imports_follow_the_design(path: Path) -> None:
    module, names = module_of(path), imports_of(path)
    package = module.split(".")[0]
    tops = {name.split(".")[0] for name in names}
    assert tops & set(PACKAGES) <= ALLOWED_PACKAGES[package]
    for library, doors in DOORS.items():
        if library in tops:
            assert relative(path) in doors, f"{relative(path)} imports {library}, which only {sorted(doors)} may"
    assert "torch" not in tops or package == "igpt_model" or relative(path) in READERS_WITH_TORCH
    order = ORDER[package]
    for imported in ours(path):
        room = room_of(imported)
        if imported.startswith(f"{package}.") and (relative(path), room) not in EXCEPTIONS:
            assert order.index(room) <= order.index(room_of(module)), f"{relative(path)} imports {imported}"
        if package == "igpt_model" and imported.startswith("pipeline."):
            assert room in PURE_PIPELINE | ({"cluster"} if path.stem == "ray" else set()), imported


def test_every_room_has_its_place_in_the_order() -> None:
    for package, order in ORDER.items():
        assert {room_of(module) for module in MODULES if module.startswith(f"{package}.")} == set(order)


def test_packages_have_no_code_of_their_own() -> None:
    inits = [path for package in PACKAGES for path in (ROOT / package).rglob("__init__.py")]
    assert len(inits) > 20
    # They say why: an older registered model brings packages of the same names.
    coded = {relative(path) for path in inits if path.read_text().strip()}
    assert coded == {"igpt_model/__init__.py", "pipeline/__init__.py"}
    folders = {path.parent for path in FILES}
    assert {path.parent for path in inits} >= folders, "a folder without __init__.py is in no wheel"


def test_environment_variables_are_read_only_in_settings() -> None:
    readers = {relative(path) for path in FILES if any(word in path.read_text() for word in ("os.environ", "getenv"))}
    # process.py, launcher.py and setup_worker.py hand it to the processes that they start, credentials.py sets it in
    # those of tasks.
    assert readers <= {
        *("flows/services/settings.py", "flows/services/process.py", "flows/prefect_ops/launcher.py"),
        "pipeline/cluster/setup_worker.py",
        "pipeline/store/credentials.py",
    }


def test_registries_are_opened_with_the_keys_that_count() -> None:
    """A registry without them would load the code of a version unverified; these others open none."""
    makers = {relative(path) for path in FILES if re.search(r"(?<!Collector)\bRegistry\(", path.read_text())}
    of_flows = {path for path in makers if path.startswith("flows/")}
    without = {"flows/monitor/models.py", "flows/clean.py", "flows/erase.py", "flows/cli/lifecycle.py"}
    assert of_flows == {"flows/trust.py", *without}
    for path in without:
        text = (ROOT / path).read_text()
        assert not re.search(r"\.(download|fetch|open|open_probed|palette)\(.*version", text), path


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_data_side_never_loads_torch() -> None:
    modules = [
        module
        for module, path in MODULES.items()
        if module.startswith("pipeline.")
        and relative(path) not in READERS_WITH_TORCH | {"pipeline/readers/ray_data.py"}
    ]
    code = f"import importlib, sys\nfor name in {modules!r}: importlib.import_module(name)\nprint(sorted(sys.modules))"
    loaded = run_python(code)
    assert "'pipeline.build.build'" in loaded and "'pipeline.readers.export'" in loaded
    for heavy in ("'torch'", "'webdataset'", "'ray.data'", "'mlflow'", "'prefect'", "'igpt_model'", "'flows'"):
        assert heavy not in loaded


def test_nothing_that_builds_or_trains_loads_a_reader() -> None:
    """They come last in the order of their package; the command line alone uses one, export, and no other package."""
    users = {relative(path) for path in FILES for name in ours(path) if name.startswith("pipeline.readers.")}
    assert users - {"flows/cli/dataset_export.py"} == {path for path in users if path.startswith("pipeline/readers/")}
    loaded = run_python("import sys, flows.build_dataset, pipeline.build.build\nprint(sorted(sys.modules))")
    assert "'pipeline.build.run_plan'" in loaded
    for late in ("'pipeline.readers'", "'torch'", "'webdataset'", "'ray.data'"):
        assert late not in loaded


def test_the_command_line_starts_without_what_reads_its_settings_on_import() -> None:
    loaded = run_python("import sys, flows.cli.main\nprint(sorted(sys.modules))")
    assert "'flows.cli.datasets'" in loaded
    for late in ("'ray'", "'prefect'", "'mlflow'", "'torch'", "'sklearn'"):
        assert late not in loaded


def test_what_runs_often_loads_no_more_than_it_needs() -> None:
    """A scheduled run that finds nothing to do, and opening a model, which each task of a probe does."""
    loaded = run_python("import sys, flows.scheduled\nprint(sorted(sys.modules))")
    assert "'flows.build_dataset'" in loaded
    for late in ("'torch'", "'mlflow'", "'sklearn'", "'ray.train'"):
        assert late not in loaded
    loaded = run_python("import sys, igpt_model.runs.open_model\nprint(sorted(sys.modules))")
    assert "'torch'" in loaded
    for late in ("'torch.distributed.checkpoint'", "'torch.distributed.tensor'", "'torch._dynamo'"):
        assert late not in loaded


def test_the_model_side_trains_without_ray_mlflow_prefect_and_s3fs() -> None:
    excluded = {
        *DOORS["ray"],
        *WITH_MLFLOW,
        *("igpt_model/registered.py", "igpt_model/probing/ray.py", "igpt_model/evaluating/ray.py"),
        "igpt_model/batch/ray.py",
        "igpt_model/tracking/figures.py",
    }
    names = [module for module, path in MODULES.items() if module.startswith("igpt_model.")
             and relative(path) not in excluded]  # fmt: skip
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
from igpt_model.model.config import ModelConfig
from igpt_model.model.network import ImageGPT
model = ImageGPT(ModelConfig(layers=1, width=8, heads=2, resolution=4, colours=5))
print(tuple(model(torch.zeros(2, 16, dtype=torch.int64)).shape))
"""
    assert run_python(code).strip() == "(2, 16, 5)"


def test_there_are_no_import_cycles() -> None:
    graph = {module: ours(path) for module, path in MODULES.items()}

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join((*trail, module))
        for imported in graph[module]:
            visit(imported, (*trail, module))

    for module in graph:
        visit(module, ())


def test_the_architecture_page_names_each_room() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    for package, order in ORDER.items():
        folders = {room for room in order if (ROOT / package / room).is_dir()}
        named = set(re.findall(rf"^  ({'|'.join(folders)})/ ", page, re.MULTILINE))
        assert folders <= named, f"docs/architecture.md leaves out {sorted(folders - named)} of {package}"


def test_no_folder_of_tests_is_left_out() -> None:
    """By default pytest silently skips every folder named build."""
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    folders = {part for path in (ROOT / "tests").rglob("test_*.py") for part in path.relative_to(ROOT).parts[:-1]}
    assert "build" in folders
    assert [name for name in folders if any(fnmatch(name, pattern) for pattern in options["norecursedirs"])] == []


TESTS = ROOT / "tests"


def mirror_of(module: str) -> str:
    """The module of tests of a product file, both relative to the root."""
    folder, _, name = module.rpartition("/")
    return f"tests/{folder}/test_{name}"


def rows_below(page: Path, heading: str) -> list[list[list[str]]]:
    """The first table below a heading, without its head: for each row and cell what stands in backticks."""
    lines = page.read_text().partition(f"{heading}\n")[2].splitlines()
    begin = next(number for number, line in enumerate(lines) if line.startswith("|"))
    table = lines[begin : next(number for number in range(begin, len(lines)) if not lines[number].startswith("|"))]
    return [[re.findall(r"`([^`]+)`", cell) for cell in line.strip("|").split("|")] for line in table[2:]]


def without_mirror() -> set[str]:
    return {relative(path) for path in FILES if not (ROOT / mirror_of(relative(path))).exists()}


def test_every_module_has_its_tests_or_a_row_that_says_where_they_are() -> None:
    rows = rows_below(TESTS / "README.md", "## Where a module has no test module of its own")
    listed = [module for row in rows for module in row[0]]
    assert len(set(listed)) == len(listed) > 5
    assert sorted(without_mirror() - set(listed)) == [], "write a module of tests, or a row in tests/README.md"
    assert sorted(set(listed) - without_mirror()) == [], "rows in tests/README.md of what has a module of tests"
    tests = [name for row in rows for name in row[1]]
    assert all(row[1] for row in rows) and [name for name in tests if not (TESTS / name).is_file()] == []


def test_every_module_of_tests_has_its_module_or_a_row_that_says_what_it_holds() -> None:
    rows = rows_below(TESTS / "README.md", "And where a module of tests has no module:")
    listed = {name for row in rows for name in row[0]}
    mirrors = {mirror_of(relative(path)) for path in FILES}
    own = {
        relative(path).removeprefix("tests/")
        for package in PACKAGES
        for path in (TESTS / package).rglob("test_*.py")
        if relative(path) not in mirrors
    }
    assert own == listed


def test_what_contributing_says_to_run_tests_what_it_says_to_edit() -> None:
    rows = rows_below(ROOT / "CONTRIBUTING.md", "## To change X, edit Y, run Z")
    assert len(rows) >= 12
    unmirrored = without_mirror()
    for _, edited, commands in rows:
        run = [path for command in commands if not command.startswith("make ") for path in command.split()]
        assert run and all((ROOT / path).exists() for path in run), run
        for path in edited:
            assert (ROOT / path).exists(), path
            if path.endswith(".py") and path not in unmirrored:
                assert any(mirror_of(path).startswith(tests) for tests in run), f"{path} is not tested by {run}"
