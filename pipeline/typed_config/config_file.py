"""Reads a config from a YAML or JSON file and FIELD=VALUE overrides. Only YAML needs more than the standard library."""

import copy
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pipeline.errors import IgptError
from pipeline.typed_config import values
from pipeline.typed_config.config import Config
from pipeline.typed_config.values import Plain

AnyConfig = TypeVar("AnyConfig", bound=Config)


def load(kind: type[AnyConfig], path: Path | None, overrides: Sequence[str] = ()) -> AnyConfig:
    """Make a config from a file and `field=value` or `section.field=value` overrides.

    Raises IgptError with the place, the value and what was expected.
    """
    given = {} if path is None else read_file(path)
    return load_fields(kind, given, overrides, origin="" if path is None else str(path))


def load_fields(kind: type[AnyConfig], given: Any, overrides: Sequence[str] = (), *, origin: str = "") -> AnyConfig:
    """Make a config from the values of a file and overrides; otherwise as `load`. `origin` is named in errors."""
    try:
        if overrides and isinstance(given, Mapping):
            given = values.nest(kind, copy.deepcopy(given))
            for override in overrides:
                _override(kind, given, override)
        return values.read(kind, given)
    except IgptError as error:
        message = str(error)
        if message.startswith("unknown field"):
            message += f"; {kind.shown_by} shows the known ones"
        raise IgptError(f"{origin}: {message}" if origin else message) from None


def read_file(path: Path) -> dict[str, Any]:
    """Read the untyped values of a file. Raises IgptError unless it holds a mapping."""
    try:
        text = path.read_text(encoding="utf-8-sig")  # editors on Windows begin a file with a byte order mark
    except UnicodeDecodeError as error:
        raise IgptError(f"{path}: byte {error.start + 1} is not UTF-8 text; save the file as UTF-8") from None
    except (OSError, ValueError) as error:  # ValueError: a path with a null byte
        reason = getattr(error, "strerror", None) or error
        raise IgptError(f"{path}: {reason}; give the path of a YAML or JSON file") from None
    try:
        given = _parse(text)
    except IgptError as error:
        raise IgptError(f"{path}: {error}") from None
    if given is None or given == "":
        return {}
    if not isinstance(given, dict):
        raise IgptError(f"{path}: a config is a mapping of fields, this is {type(given).__name__}")
    return given


def _parse(text: str) -> Any:
    """Parse JSON or YAML; unquoted YAML scalars stay text. Raises IgptError."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        import yaml  # noqa: PLC0415 (not installed on every training machine)
    except ImportError:
        raise IgptError("reading YAML needs PyYAML: install pyyaml, or write it as JSON") from None

    class Untyped(yaml.SafeLoader):
        """Leaves numbers, switches and dates as text: the type of their field decides."""

        yaml_implicit_resolvers = {"<": [("tag:yaml.org,2002:merge", re.compile("<<"))]}

    def scalar(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> str:
        given = str(loader.construct_scalar(node))
        return Plain(given) if node.style is None else given

    Untyped.add_constructor("tag:yaml.org,2002:str", scalar)
    try:
        return yaml.load(text, Untyped)
    except RecursionError:
        raise IgptError("it is nested too deeply to be a config; compare with `igpt config`") from None
    except Exception as error:  # noqa: BLE001 (besides YAMLError, `!!int x` raises whatever its conversion does)
        place = getattr(error, "problem_mark", None)
        line = f" in line {place.line + 1}" if place else ""
        raise IgptError(f"not valid YAML{line}; compare with `igpt config`") from None


def _override(kind: type[Any], given: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    if not equals or not name:
        raise IgptError(f"{override!r} is not an override: write FIELD=VALUE, as in steps=500 or optimizer.steps=500")
    *sections, field = values.path_of(kind, name.split("."))
    place = given
    for section in sections:
        if values.is_null(place.get(section)):  # a heading with nothing below it
            place[section] = {}
        place = place[section]
        if not isinstance(place, dict):
            raise IgptError(f"{override!r}: {section} has no fields of its own")
    place[field] = _override_value(override, text)


def _override_value(override: str, text: str) -> Any:
    """Parse a list, a mapping or quoted text as in a file; anything else is unquoted text."""
    if not text:
        return ""
    if text[0] not in "[{\"'":
        return Plain(text)
    try:
        return _parse(text)
    except IgptError:
        raise IgptError(f"{override!r}: the value is not valid YAML; quote it") from None
