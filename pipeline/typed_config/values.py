"""Converts values from a file, the command line or stored JSON to a config dataclass, by the types of its fields.

Unquoted text is parsed as the field's type: `1e-3`, `1_000` and `yes` mean the same wherever they are written, and a
name that looks like a number or a date stays a name.
"""

import difflib
import math
import re
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from datetime import datetime
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from pipeline.errors import IgptError

Config = TypeVar("Config")

_NULLS = {"", "~", "null", "Null", "NULL"}
_SWITCHES = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
# No leading zeros: YAML 1.1 reads 010 as 8, YAML 1.2 as 10.
_INTEGER = re.compile(r"[+-]?(0|[1-9][0-9]*(_[0-9]+)*)")
_INT64 = range(-(2**63), 2**63)
_LONGEST_NUMBER = 100  # characters
_LONGEST_SHOWN = 200  # characters of a value in a message
_NUMBER = re.compile(r"[+-]?((0|[1-9][0-9]*(_[0-9]+)*)(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")


class Plain(str):
    """Unquoted text: `null` is None, and a field of type Any takes what YAML parses from it."""


def is_null(value: Any) -> bool:
    """Whether a value from a file stands for None."""
    return value is None or (isinstance(value, Plain) and value in _NULLS)


def read(kind: type[Config], given: Any) -> Config:
    """Make a config from nested values, or flat ones where the config allows it.

    Raises IgptError that names the invalid field.
    """
    return _build(kind, typed(kind, given), "")


def typed(kind: type[Any], given: Any, place: str = "") -> dict[str, Any]:
    """Convert the given fields to nested values of their types, without adding defaults.

    `place` is the name of the section that is read. Raises IgptError that names the invalid field.
    """
    if not isinstance(given, Mapping):
        raise IgptError(f"{place or 'a config'} is {_shown(given)}: it must be a mapping of fields")
    nested, kinds = nest(kind, given, place), field_types(kind)
    for name in nested:
        if name not in kinds:
            raise IgptError(f"unknown field {_join(place, name)}{_near(kind, str(name), place)}")
    return {str(name): _value(kinds[name], value, _join(place, name)) for name, value in nested.items()}


def _near(kind: type[Any], name: str, place: str) -> str:
    """The known field that is spelled like an unknown one, in words; empty if there is none."""
    near = difflib.get_close_matches(name, {*field_types(kind), *sections_of(kind)} - {name}, 1, cutoff=0.7)
    return f", perhaps {_join(place, near[0])}" if near else ""


def nest(kind: type[Any], given: Mapping[str, Any], place: str = "") -> dict[str, Any]:
    """Move fields that were given without their section into it. Raises IgptError for a field that is given twice."""
    sections, kinds = sections_of(kind), field_types(kind)
    nested: dict[str, Any] = {}
    for name, value in given.items():
        section = section_of(kinds.get(name))
        if section is None or not isinstance(value, Mapping):
            nested.setdefault(name, value)
        else:
            nested[name] = nest(section, value, _join(place, name))
    for name in [name for name in nested if name in sections]:
        there = nested.get(sections[name])
        if isinstance(there, Mapping) and name in there:
            section_name = _join(place, sections[name])
            raise IgptError(f"{_join(place, name)} and {section_name}.{name} are the same field: leave one out")
        if isinstance(there, Mapping) or there in (None, *_NULLS):
            nested[sections[name]] = {**(there or {}), name: nested.pop(name)}
    return nested


def path_of(kind: type[Any], names: list[str]) -> list[str]:
    """The path of a field, with the section if that was left out."""
    *before, last = names
    place: type[Any] | None = kind
    for name in before:
        place = None if place is None else section_of(field_types(place).get(name))
    return [*before, sections_of(place)[last], last] if place and last in sections_of(place) else names


def sections_of(kind: type[Any]) -> dict[str, str]:
    """The section of each field that may be written without it."""
    if not getattr(kind, "reads_flat", False):  # SectionedConfig's
        return {}
    sections = {name: section_of(of) for name, of in field_types(kind).items()}
    return {field.name: name for name, section in sections.items() if section is not None for field in fields(section)}


def field_types(kind: type[Any]) -> dict[str, Any]:
    """The type of each field, with its range."""
    hints = get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in fields(kind)}


def check(config: Any) -> None:
    """Raise IgptError for a value outside its field's range. Types are not checked: mypy does that."""
    for name, kind in field_types(type(config)).items():
        _check(kind, getattr(config, name), name)


def rules_of(kind: Any) -> list[Any]:
    """The ranges that a field's type declares, also those of the items of a list."""
    options = get_args(kind)
    if get_origin(kind) is Literal:
        return []
    if get_origin(kind) is Annotated:
        return [*options[1:], *rules_of(options[0])]
    return [rule for option in options for rule in rules_of(option)]


def _check(kind: Any, value: Any, place: str) -> None:
    origin, options = get_origin(kind), get_args(kind)
    if origin is Annotated:
        _check(options[0], value, place)
        for rule in options[1:]:
            rule.check(value, place)
    elif origin in (Union, types.UnionType):
        if value is not None:
            _check(_only(options), value, place)
    elif origin is Literal:
        if value not in options:
            raise _refused(place, value, " or ".join(options))
    elif origin in (tuple, list):
        for item in value:
            _check(options[0], item, place)


def _value(kind: Any, value: Any, place: str) -> Any:
    """Convert a value to a field's type. Raises IgptError when that is impossible."""
    origin, options = get_origin(kind), get_args(kind)
    if kind is Any:
        return resolved(value)
    if is_null(value):
        value = None
    if origin in (Union, types.UnionType):
        return None if value is None or value == "" else _value(_only(options), value, place)
    if origin is Annotated:
        value = _value(options[0], value, place)
        for rule in options[1:]:
            rule.check(value, place)
        return value
    if isinstance(kind, type) and is_dataclass(kind):
        return typed(kind, {} if value is None else value, place)  # a heading with nothing below it
    if origin in (tuple, list):
        if isinstance(value, Plain):
            value = [Plain(item.strip()) for item in value.split(",")]
        if not isinstance(value, list | tuple):
            raise _refused(place, value, "a list, as in [1, 2]")
        return [_value(options[0], item, f"{place}.{number}") for number, item in enumerate(value)]
    if origin is dict:
        if not isinstance(value, Mapping):
            raise _refused(place, value, "a mapping")
        return resolved(value)
    if origin is Literal:
        if value not in options:
            raise _refused(place, value, " or ".join(options))
        return str(value)
    return _SCALARS[kind](value, place)


def _bool(value: Any, place: str) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in _SWITCHES:
        return _SWITCHES[value.lower()]
    raise _refused(place, value, "true or false")


def _int(value: Any, place: str) -> int:
    whole: int | None = None
    if isinstance(value, int) and not isinstance(value, bool):
        whole = value
    elif isinstance(value, str) and _INTEGER.fullmatch(value):
        # Python refuses to read thousands of digits.
        whole = int(value) if len(value) < _LONGEST_NUMBER else _INT64.stop
    elif isinstance(value, float) or _is_number(value):
        number = float(value)
        whole = int(number) if number.is_integer() else None  # 1e4
    if whole is None:
        raise _refused(place, value, "a whole number")
    if whole not in _INT64:
        raise _refused(place, value, "a whole number of less than 64 bits")
    return whole


def _float(value: Any, place: str) -> float:
    if _is_number(value) or (isinstance(value, int | float) and not isinstance(value, bool)):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isfinite(number):
            return number
    raise _refused(place, value, "a number")


def _is_number(value: Any) -> bool:
    return isinstance(value, str) and _NUMBER.fullmatch(value) is not None


def _str(value: Any, place: str) -> str:
    if isinstance(value, str):
        return str(value)
    raise _refused(place, value, "text" if value is None else "text; put it in quotes")


def _datetime(value: Any, place: str) -> datetime:
    if isinstance(value, datetime):
        return value
    try:
        return datetime.fromisoformat(value)
    except (TypeError, ValueError):
        raise _refused(place, value, "a time, as 2026-01-05T04:00:00Z") from None


_SCALARS = {bool: _bool, int: _int, float: _float, str: _str, datetime: _datetime}


def resolved(value: Any) -> Any:
    """A value without a declared type: unquoted text is parsed as YAML."""
    if isinstance(value, Mapping):
        return {str(name): resolved(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [resolved(inner) for inner in value]
    if isinstance(value, Plain):
        import yaml  # noqa: PLC0415 (unquoted text comes from YAML; no config of training has such a field)

        return yaml.safe_load(value)
    return value


def _build(kind: Any, values: dict[str, Any], place: str) -> Any:
    """Build the dataclass from typed values. Raises IgptError for a missing or an invalid field."""
    kinds, made = field_types(kind), {}
    for field in fields(kind):
        section = section_of(kinds[field.name])
        required = field.default is MISSING and field.default_factory is MISSING
        name = _join(place, field.name)
        if field.name in values:
            made[field.name] = _built(kinds[field.name], values[field.name], name)
        elif required and section is not None:
            made[field.name] = _build(section, {}, name)  # raises for its missing fields, if it has any
        elif required:
            raise IgptError(f"{name} is missing; set it in the file or as {name}=VALUE")
    return kind(**made)


def _built(kind: Any, value: Any, place: str) -> Any:
    section, origin, options = section_of(kind), get_origin(kind), get_args(kind)
    if section is not None:
        return None if value is None else _build(section, value, place)
    if origin in (tuple, list):
        return origin(_built(options[0], item, f"{place}.{number}") for number, item in enumerate(value))
    return value


def section_of(kind: Any) -> type[Any] | None:
    """The dataclass of a field that is a section, required or optional; None for other fields."""
    if get_origin(kind) in (Union, types.UnionType):
        kind = _only(get_args(kind))
    return kind if isinstance(kind, type) and is_dataclass(kind) else None


def _only(options: tuple[Any, ...]) -> Any:
    """The type in an optional type."""
    (option,) = (option for option in options if option is not type(None))
    return option


def _join(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    shown = repr(str(value)) if isinstance(value, str) else repr(value)
    return shown if len(shown) <= _LONGEST_SHOWN else f"{shown[:_LONGEST_SHOWN]}..."


def _refused(place: str, value: Any, expected: str) -> IgptError:
    return IgptError(f"{place} is {_shown(value)}: it must be {expected}")
