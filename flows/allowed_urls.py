"""Which places a deployed run may name: it has the driver's keys and network, and whoever starts it may not."""

from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from pipeline.errors import IgptError
from pipeline.printable import printable

PLACES = {"raw", "dataset", "labels", "palette", "runs", "parent", "model", "beside", "features"}
"""The fields of configs that name a place by URL or path, or a registered model."""


def check(config: Any, allowed: Sequence[str] | None) -> None:
    """Raise IgptError when a config names a place that is below none of the allowed URLs, before anything is asked.

    None allows every place. Registered models are allowed: MLflow says where they are.
    """
    if allowed is None:
        return
    for name, place in _places(config, ""):
        if place and not place.startswith("models:") and not _is_below(place, allowed):
            raise IgptError(
                f"{name} is {printable(place)[:200]!r}: deployed runs may name {' and '.join(allowed)} only "
                "(IGPT_ALLOWED_URLS); use the command line for other places"
            )


def _places(config: Any, prefix: str) -> Iterator[tuple[str, str]]:
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            yield from _places(value, f"{prefix}{field.name}.")
        elif field.name in PLACES and value is not None:
            for place in (value,) if isinstance(value, str) else value if isinstance(value, tuple) else ():
                yield f"{prefix}{field.name}", place


def _is_below(place: str, allowed: Sequence[str]) -> bool:
    """Whether a URL is one of the allowed ones or below it. Parts that lead upwards are below nothing."""
    if {".", ".."} & set(place.split("/")):
        return False
    return any(f"{place.rstrip('/')}/".startswith(f"{url.rstrip('/')}/") for url in allowed)
