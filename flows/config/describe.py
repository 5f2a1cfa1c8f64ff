"""Configs as commented YAML files, as `igpt config` prints them."""

import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields
from typing import Any

import yaml
from pydantic import TypeAdapter

from flows.config.backup import BackupConfig
from flows.config.clean import CleanConfig
from flows.config.refresh import RefreshConfig
from igpt_model.batch.config import BatchConfig
from igpt_model.config import PretrainConfig
from igpt_model.evaluating.config import EvaluateConfig
from igpt_model.probing.config import ProbeConfig
from igpt_model.registry.gate import GateConfig
from pipeline.config import DatasetConfig
from pipeline.typed_config import values
from pipeline.typed_config.config import Config

# The name of each config, for `igpt config`.
KINDS: dict[str, type[Config]] = {
    "refresh": RefreshConfig,
    "dataset": DatasetConfig,
    "pretrain": PretrainConfig,
    "probe": ProbeConfig,
    "evaluate": EvaluateConfig,
    "batch": BatchConfig,
    "promotion": GateConfig,
    "backup": BackupConfig,
    "clean": CleanConfig,
}


def describe(kind: type[Config]) -> str:
    """A YAML file of a config with every field, its description and its default; required fields have no value."""
    return "\n".join(_describe(kind, "")) + "\n"


def _describe(kind: type[Any], indent: str) -> Iterator[str]:
    schemas = TypeAdapter(kind).json_schema()["properties"]
    for field in fields(kind):
        field_type = values.field_types(kind)[field.name]
        section = values.section_of(field_type)
        # A section without a description of its own has that of its class.
        description = schemas[field.name].get("description") or inspect.getdoc(section) or ""
        ranges = [f"{rule.text.capitalize()}." for rule in values.rules_of(field_type)]
        lines = textwrap.wrap(" ".join([description, *ranges]), 118 - len(indent))
        yield from (f"{indent}# {line}" for line in lines)
        if section is not None and field.default is not None:
            yield f"{indent}{field.name}:"
            yield from _describe(section, indent + "  ")
        else:
            yield f"{indent}{field.name}: {_default(field)}".rstrip()


def _default(field: Field[Any]) -> str:
    if field.default is MISSING:
        return ""
    value = list(field.default) if isinstance(field.default, tuple) else field.default
    return str(yaml.safe_dump(value, default_flow_style=True)).split("\n")[0]
