"""The fields that say how pictures are drawn."""

import secrets
from collections.abc import Sequence
from typing import Any

from nicegui import ui

from flows.playground.facts import Facts
from flows.playground.limits import Limits
from pipeline.errors import IgptError
from pipeline.printable import printable

_SEEDS = 2**32
_DRAWS = 4


class Controls:
    """Temperature, top-k, top-p, seed, the number of pictures, and their class where a model wants one."""

    def __init__(self, models: Sequence[Facts], limits: Limits) -> None:
        self._limits = limits
        conditional = next((model for model in models if model.config.classes is not None), None)
        self._label: ui.select | None = None
        with ui.element("div").props('role=group aria-label="How pictures are drawn"').classes("controls") as self.card:
            self._draws = _number("Pictures", _DRAWS, 1, limits.draws, 1)
            self._temperature = _number("Temperature", 1.0, 0, 5, 0.1)
            self._top_k = _number("Top-k", None, 1, None, 1, "all")
            self._top_p = _number("Top-p", None, 0, 1, 0.05, "all")
            self._seed = _number("Seed", 0, 0, _SEEDS - 1, 1)
            with self._seed.add_slot("append"):
                ui.button(icon="casino", on_click=lambda: self._seed.set_value(secrets.randbelow(10_000))).props(
                    'flat dense round size=sm aria-label="Another seed"'
                )
        with ui.element("div") as self.class_card:  # looking at a picture needs it too
            if conditional is not None and conditional.config.classes is not None:
                names = [*conditional.classes, *map(str, range(len(conditional.classes), conditional.config.classes))]
                options = {number: printable(name) for number, name in enumerate(names)}
                self._label = ui.select(options, label="Class", value=0).props("outlined dense").classes("class")

    @property
    def draws(self) -> int:
        """The number of pictures to draw."""
        return _whole("Pictures", self._draws.value, 1, self._limits.draws)

    def label_for(self, model: Facts) -> int | None:
        """The class for a class-conditional model; None for another. Raises IgptError when it has no such class."""
        if model.config.classes is None:
            return None
        label = 0 if self._label is None or self._label.value is None else int(self._label.value)
        if label >= model.config.classes:
            raise IgptError(f"{model.name} has no class of number {label}: choose one below {model.config.classes}")
        return label

    def params(self, model: Facts) -> dict[str, Any]:
        """The parameters of `RegisteredImageGPT.predict`. Raises IgptError for a field that holds no such number."""
        params: dict[str, Any] = {"samples": self.draws, "seed": _whole("Seed", self._seed.value, 0, _SEEDS - 1)}
        if self._temperature.value is not None:
            params["temperature"] = float(self._temperature.value)
        if self._top_k.value is not None:
            params["top_k"] = _whole("Top-k", self._top_k.value, 1, _SEEDS)
        if self._top_p.value is not None:
            params["top_p"] = float(self._top_p.value)
        label = self.label_for(model)
        return params if label is None else {**params, "label": label}


def _number(
    label: str, value: float | None, least: float, most: float | None, step: float, placeholder: str = ""
) -> ui.number:
    field = ui.number(label, value=value, min=least, max=most, step=step, placeholder=placeholder)
    field.props("outlined dense stack-label")
    return field


def _whole(name: str, value: float | None, least: int, most: int) -> int:
    if value is None or not least <= value <= most or value % 1:
        raise IgptError(f"{name} is {'empty' if value is None else value}: give a whole number from {least} to {most}")
    return int(value)
