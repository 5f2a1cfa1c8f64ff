"""The base of all configs: frozen dataclasses that check their ranges and that Prefect shows as a form."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from pipeline.typed_config import values


@dataclass(frozen=True, kw_only=True)
class Config:
    """Base of the config dataclasses: frozen, keyword-only, a sentence under each field."""

    __pydantic_config__: ClassVar = {"use_attribute_docstrings": True, "extra": "forbid"}
    shown_by: ClassVar[str]
    """The command that shows its fields; named when a field is misspelt."""

    def __post_init__(self) -> None:
        values.check(self)

    @classmethod
    def from_fields(cls, **fields: Any) -> Self:
        """Make a config from its fields, nested or flat. Raises IgptError that names the invalid field."""
        return values.read(cls, fields)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Callable[[Any], Any]) -> Any:
        """Pydantic's schema of the dataclass, for Prefect's form; values are converted by `values.read` first.

        So stored parameters mean the same as in a file, and give the same error messages.
        """
        from pydantic_core import core_schema  # noqa: PLC0415 (not installed on every training machine)

        def read(given: Any) -> Any:
            return given if isinstance(given, cls) else values.read(cls, given)

        return core_schema.no_info_before_validator_function(read, handler(source))


@dataclass(frozen=True, kw_only=True)
class SectionedConfig(Config):
    """A config with sections. Their fields may also be given without the section, as in configs of earlier versions."""

    reads_flat: ClassVar[bool] = True

    def with_fields(self, **fields: Any) -> Self:
        """A copy with other values; fields of sections are given without their section."""
        sections = values.sections_of(type(self))
        changes: dict[str, Any] = {name: value for name, value in fields.items() if name not in sections}
        for section in {sections[name] for name in fields if name in sections}:
            inner = {name: value for name, value in fields.items() if sections.get(name) == section}
            changes[section] = replace(getattr(self, section), **inner)
        return replace(self, **changes)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: Any, handler: Any) -> dict[str, Any]:
        """The JSON schema, which also accepts fields given without their section.

        Prefect's server validates parameters with it first; `values.read` then rejects missing and misspelt fields.
        """
        form: dict[str, Any] = handler(schema)
        fields = handler.resolve_ref_schema(form)
        del fields["additionalProperties"], fields["required"]
        return form
