"""Typed configuration: from YAML and KEY=VALUE overrides to the dataclasses, and back to a commented YAML."""

import copy
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from igpt_model.config import PretrainConfig, ProbeConfig
from igpt_model.registry.gate import GateConfig
from pipeline.config import DatasetConfig
from pipeline.errors import IgptError

Config = TypeVar("Config")


@dataclass(frozen=True, kw_only=True)
class RefreshConfig:
    """Raw images to a registered, probed model: the whole pipeline's configuration."""

    __pydantic_config__ = {"use_attribute_docstrings": True, "extra": "forbid"}

    dataset: DatasetConfig
    """The dataset to build; its source is what changes from night to night."""
    pretrain: PretrainConfig
    """The model to train on it."""
    probe: ProbeConfig = ProbeConfig()
    """How its features are judged."""
    promotion: GateConfig | None = None
    """What it must show to become the champion at once; none: that is left to `igpt models promote`."""

    def __post_init__(self) -> None:
        for name, value in (("pretrain.dataset", self.pretrain.dataset), ("probe.dataset", self.probe.dataset)):
            if value:
                raise IgptError(f"{name} is {value!r}: in a refresh it is the dataset just built, leave it out")
        if self.probe.model or self.pretrain.snapshot is not None or self.probe.snapshot is not None:
            raise IgptError("probe.model, pretrain.snapshot and probe.snapshot: a refresh sets them, leave them out")
        if self.pretrain.class_conditional:
            raise IgptError(
                "pretrain.class_conditional is set: a refresh probes features, and those of a class-conditional model "
                "are told the class; train it with `igpt pretrain`"
            )


# The name of each config, for `igpt config`.
KINDS: dict[str, type[Any]] = {
    "refresh": RefreshConfig,
    "dataset": DatasetConfig,
    "pretrain": PretrainConfig,
    "probe": ProbeConfig,
    "promotion": GateConfig,
}
_NO_FILE = "configuration"
_UNKNOWN = {"unexpected_keyword_argument", "extra_forbidden"}


def load(kind: type[Config], path: Path | None, overrides: Sequence[str] = ()) -> Config:
    """Make a config from a YAML file and `field=value` or `section.field=value` overrides, whose values are YAML too.

    Raises IgptError with the place, the value and what was expected.
    """
    fields = _read_yaml(path) if path is not None else {}
    return load_fields(kind, fields, overrides, origin=str(path) if path else _NO_FILE)


def load_fields(
    kind: type[Config], fields: dict[str, Any], overrides: Sequence[str], *, origin: str = _NO_FILE
) -> Config:
    """Make a config from nested fields and overrides; otherwise as `load`."""
    fields = copy.deepcopy(fields)
    for override in overrides:
        _override(fields, override)
    return _validate(kind, fields, origin)


def _validate(kind: type[Config], fields: dict[str, Any], origin: str) -> Config:
    """Validate nested fields into a config. Raises IgptError naming a field at fault."""
    try:
        return TypeAdapter(kind).validate_python(fields)
    except ValidationError as error:
        first = min(error.errors(), key=lambda each: each["type"] not in _UNKNOWN)  # a misspelt one is missing too
        place = ".".join(str(part) for part in first["loc"]) or "it"
        if first["type"] in _UNKNOWN:
            known = next(
                (f"`igpt config {name}` prints" for name, each in KINDS.items() if each is kind),
                "infra/prefect.yaml has",
            )
            raise IgptError(f"{origin}: unknown field {place}; {known} the known ones") from None
        if first["type"] in {"missing", "missing_argument", "missing_keyword_only_argument"}:
            raise IgptError(f"{origin}: {place} is missing; set it in the file or as {place}=VALUE") from None
        message = first["msg"][0].lower() + first["msg"][1:]
        raise IgptError(f"{origin}: {place} is {first['input']!r}: {message}") from None
    except IgptError as error:
        raise IgptError(f"{origin}: {error}" if origin != _NO_FILE else str(error)) from None


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        fields = yaml.safe_load(path.read_text())
    except OSError as error:
        raise IgptError(f"{path}: {error.strerror}; give the path of a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        place = getattr(error, "problem_mark", None)
        line = f" in line {place.line + 1}" if place else ""
        raise IgptError(f"{path}: not valid YAML{line}; compare with `igpt config`") from None
    if fields is None:
        return {}
    if not isinstance(fields, dict):
        raise IgptError(f"{path}: a config is a mapping of fields, this is a {type(fields).__name__}")
    return fields


def _override(fields: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    if not equals or not name:
        raise IgptError(f"{override!r} is not an override: write field=value, as in steps=500 or pretrain.steps=500")
    *sections, field = name.split(".")
    place = fields
    for section in sections:
        place = place.setdefault(section, {})
        if not isinstance(place, dict):
            raise IgptError(f"{override!r}: {section} has no fields of its own")
    try:
        place[field] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise IgptError(f"{override!r}: the value is not valid YAML; quote it") from None


def describe(kind: type[Any]) -> str:
    """A YAML file of a config with every field, its sentence and its default; required fields have no value."""
    schema = TypeAdapter(kind).json_schema()
    return "\n".join(_describe(schema, schema.get("$defs", {}), "")) + "\n"


def _describe(schema: dict[str, Any], definitions: dict[str, Any], indent: str) -> list[str]:
    lines = []
    for name, field in schema["properties"].items():
        width = 118 - len(indent)
        lines += [f"{indent}# {line}" for line in textwrap.wrap(field.get("description", ""), width)]
        reference = field.get("$ref", "").rsplit("/", 1)[-1]
        if "properties" in definitions.get(reference, {}):
            lines.append(f"{indent}{name}:")
            lines += _describe(definitions[reference], definitions, indent + "  ")
        else:
            value = (
                yaml.safe_dump(field["default"], default_flow_style=True).split("\n")[0] if "default" in field else ""
            )
            lines.append(f"{indent}{name}: {value}".rstrip())
    return lines
