"""The code stored with a registered model: its serving module and the project modules it imports.

The modules are stored in a package of their own, whose name holds a digest of them, and import each other from there.
MLflow imports a version's code by name, and Python imports a name once: with the project's own names a process would
run the second version with the code of the first, or of an installed project.
"""

import ast
import importlib.util
from pathlib import Path

from pipeline.hashing import digest

_PACKAGES = ("igpt_model", "pipeline")
_NAME = "igpt_code_"
_DIGITS = 12


def copy_code(module: str, folder: Path) -> Path:
    """Copy a module and all project modules that it imports, directly or not, into a new package in the folder.

    Returns the package. In it the module has its own name: `{package.name}.{module}`.
    """
    sources = _sources(module)
    texts = {source.as_posix(): path.read_text() for source, path in sources.items()}
    package = folder / f"{_NAME}{digest(texts)[:_DIGITS]}"
    for name, text in texts.items():
        target = package / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(_with_imports_from(package.name, text))
    (package / "__init__.py").touch()
    return package


def _sources(module: str) -> dict[Path, Path]:
    """The files of a module and of all project modules that it imports, by their place in a package, sorted."""
    to_read, visited, sources = [module], set[str](), dict[Path, Path]()
    while to_read:
        name = to_read.pop()
        if name in visited:
            continue
        visited.add(name)
        source = _source(name)
        if source is None:
            continue  # a class or a function of a module
        place = Path(*name.split("."))
        sources[place / "__init__.py" if source.name == "__init__.py" else place.with_suffix(".py")] = source
        to_read += [name.rpartition(".")[0]] if "." in name else []
        to_read += [imported for node in _imports(source.read_text()) for imported in _imported(node)]
    return dict(sorted(sources.items()))


def _imports(text: str) -> list[ast.Import | ast.ImportFrom]:
    """The statements of a module that import from the project."""
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import | ast.ImportFrom)]
    return [node for node in nodes if any(name.split(".")[0] in _PACKAGES for name in _imported(node))]


def _imported(node: ast.Import | ast.ImportFrom) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    module = node.module or ""
    return [module, *(f"{module}.{alias.name}" for alias in node.names)]


def _with_imports_from(package: str, text: str) -> str:
    """A module whose imports from the project are imports from a package that holds the project's."""
    lines = text.splitlines(keepends=True)
    names = {node.id for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)}
    assert not names & set(_PACKAGES), f"write `from package import module`: {lines[0]}"
    for node in _imports(text):
        line = lines[node.lineno - 1]
        begin = line[: node.col_offset] + ("from " if isinstance(node, ast.ImportFrom) else "import ")
        one = isinstance(node, ast.ImportFrom) or len(node.names) == 1
        assert one and line.startswith(begin), f"write one import a line: {line}"
        lines[node.lineno - 1] = f"{begin}{package}.{line[len(begin) :]}"
    return "".join(lines)


def _source(name: str) -> Path | None:
    """The file of a module or package; None when the name is an object in a module."""
    package, *submodules = name.split(".")
    root = importlib.util.find_spec(package)
    assert root is not None and root.origin is not None
    path = Path(root.origin).parent.joinpath(*submodules)
    return next((file for file in (path / "__init__.py", path.with_suffix(".py")) if file.is_file()), None)
