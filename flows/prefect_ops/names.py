"""The names of flow runs: what they make, so that a list of runs on Prefect's page can be read."""

from collections.abc import Callable, Mapping
from typing import Any

from prefect.runtime import flow_run

from pipeline.printable import printable

_LONGEST = 200
# Parameters that earlier versions stored are flat: a section's fields stand where the section would.
_SECTIONS = ("data", "tracking")


def making(words: str, *fields: str) -> Callable[[], str]:
    """A name for `flow_run_name`: words with a `{}` for each field of the parameters, such as `config.dataset`.

    A comma and what follows it are left out where its field has no value: `{}, snapshot {}`.
    """

    def name() -> str:
        clauses: list[str] = []
        values = iter([_value(flow_run.parameters, field) for field in fields])
        for clause in words.split(", "):
            filled = [next(values) for _ in range(clause.count("{}"))]
            if not clauses or all(filled):
                clauses.append(clause.format(*filled))
        return printable(", ".join(clauses).strip())[:_LONGEST]

    return name


def _value(parameters: Mapping[str, Any], path: str) -> object:
    """A field; empty where there is none. A deployment's configs are mappings here, not yet objects."""
    value: Any = parameters
    for field in path.split("."):
        if isinstance(value, Mapping):
            value = value.get(field, value if field in _SECTIONS else "")
        else:
            value = getattr(value, field, "")
    return value or ""
