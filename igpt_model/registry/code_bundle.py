"""The code stored with a registered model: its serving module and the project modules it imports."""

import ast
import importlib.util
import shutil
from pathlib import Path

_PACKAGES = ("igpt_model", "pipeline")


def copy_code(module: str, folder: Path) -> list[Path]:
    """Copy a module and all project modules that it imports, directly or not; returns the packages in the folder."""
    to_copy, visited = [module], set[str]()
    while to_copy:
        name = to_copy.pop()
        if name in visited:
            continue
        visited.add(name)
        source = _source(name)
        if source is None:
            continue  # a class or a function of a module
        target = folder.joinpath(*name.split("."))
        target = target / "__init__.py" if source.name == "__init__.py" else target.with_suffix(".py")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        to_copy += [name.rpartition(".")[0]] if "." in name else []
        to_copy += _imports(source)
    return [folder / package for package in _PACKAGES if (folder / package).is_dir()]


def _imports(source: Path) -> list[str]:
    names: list[str] = []
    for node in ast.walk(ast.parse(source.read_bytes())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return [name for name in names if name.split(".")[0] in _PACKAGES]


def _source(name: str) -> Path | None:
    """The file of a module or package; None when the name is an object in a module."""
    package, *submodules = name.split(".")
    root = importlib.util.find_spec(package)
    assert root is not None and root.origin is not None
    path = Path(root.origin).parent.joinpath(*submodules)
    return next((file for file in (path / "__init__.py", path.with_suffix(".py")) if file.is_file()), None)
