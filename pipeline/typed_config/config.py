"""What every config is: a frozen dataclass whose ranges hold however it is made, and which Prefect shows as a form."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from pipeline.typed_config import values


@dataclass(frozen=True, kw_only=True)
class Config:
    """Base of the config dataclasses: frozen, keyword-only, a sentence under each field."""

    __pydantic_config__: ClassVar = {"use_attribute_docstrings": True, "extra": "forbid"}
    shown_by: ClassVar[str]
    """What shows its fields to a user who misspelt one."""

    def __post_init__(self) -> None:
        values.check(self)

    @classmethod
    def from_fields(cls, **fields: Any) -> Self:
        """Make a config from its fields, nested or flat. Raises IgptError naming a field at fault."""
        return values.read(cls, fields)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Callable[[Any], Any]) -> Any:
        """Pydantic's schema of the dataclass, for Prefect's form; the values are read by us, before it sees them.

        So stored parameters mean what the same words in a file mean, and are refused with the same line.
        """
        from pydantic_core import core_schema  # noqa: PLC0415 (a machine that only trains need not have it)

        def read(given: Any) -> Any:
            return given if isinstance(given, cls) else values.read(cls, given)

        return core_schema.no_info_before_validator_function(read, handler(source))


@dataclass(frozen=True, kw_only=True)
class SectionedConfig(Config):
    """A config whose fields are sections. Their fields may be given without the section, as before there were any."""

    reads_flat: ClassVar[bool] = True

    def with_fields(self, **fields: Any) -> Self:
        """A copy with other values; a field of a section is named without it."""
        sections = values.sections_of(type(self))
        changes: dict[str, Any] = {name: value for name, value in fields.items() if name not in sections}
        for section in {sections[name] for name in fields if name in sections}:
            inner = {name: value for name, value in fields.items() if sections.get(name) == section}
            changes[section] = replace(getattr(self, section), **inner)
        return replace(self, **changes)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: Any, handler: Any) -> dict[str, Any]:
        """The form of the sections, which does not forbid their fields without them.

        A server compares parameters with it before anything of ours sees them; a field that is missing or misspelt is
        told by our own reading.
        """
        form: dict[str, Any] = handler(schema)
        fields = handler.resolve_ref_schema(form)
        del fields["additionalProperties"], fields["required"]
        return form
