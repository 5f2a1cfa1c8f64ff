"""One tab of the page: a button, how far its request is, and the answers of the models that serve it."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from nicegui import ui
from PIL import Image

from flows.playground.facts import Facts
from flows.playground.model_process import ModelProcess
from flows.playground.results import ModelResults


@dataclass(frozen=True, kw_only=True)
class Served:
    """A model that is played with."""

    process: ModelProcess
    facts: Facts


@dataclass(frozen=True, kw_only=True)
class Purpose:
    """What a tab is for."""

    name: str
    """Of the tab and its button."""
    serves: Callable[[Facts], bool]
    """Whether a model can do it."""
    needs_picture: bool = True
    is_drawing: bool = True
    note: str = ""


PURPOSES = (
    Purpose(
        name="Complete",
        serves=lambda model: model.draws,
        note="Pixels are drawn row by row, each given those before it; kept pixels further down have no say in it.",
    ),
    Purpose(name="Draw new", serves=lambda model: model.draws, needs_picture=False),
    Purpose(
        name="Enlarge",
        serves=lambda model: model.upscales,
        note="The model is given a small version of your picture, and draws a large one.",
    ),
    Purpose(
        name="Look",
        serves=lambda model: model.scores or model.classifies,
        is_drawing=False,
        note="How likely your picture is to the model, pixel by pixel, and what a probe takes it for.",
    ),
)


class Panel:
    """The content of a tab."""

    def __init__(
        self,
        purpose: Purpose,
        models: Sequence[Served],
        *,
        on_start: "Callable[[Panel], Awaitable[None]]",
        on_stop: Callable[[], None],
        on_use: Callable[[Image.Image], None],
    ) -> None:
        self.purpose = purpose
        if purpose.note:
            ui.label(purpose.note).classes("caption")
        with ui.row().classes("actions"):
            self._start = ui.button(purpose.name, on_click=lambda: on_start(self)).props("unelevated no-caps")
            self._stop = ui.button("Stop", on_click=on_stop).props("outline no-caps")
            self._status = ui.label().props("role=status aria-live=polite").classes("status")
        self._progress = ui.linear_progress(0, show_value=False).props(
            f'instant-feedback rounded aria-label="{purpose.name}: how far it is"'
        )
        with ui.element("div").classes("models"):
            serving = [model for model in models if purpose.serves(model.facts)]
            self.results = [
                (model, ModelResults(model.facts, is_named=len(models) > 1, on_use=on_use)) for model in serving
            ]
        self._done = [0.0] * len(self.results)
        self._is_busy = False
        self.end("Choose a picture first." if purpose.needs_picture else "")
        self._start.set_enabled(not purpose.needs_picture)

    def enable(self) -> None:
        """There is a picture now."""
        if not self._start.enabled:
            self._start.set_enabled(True)
            self._status.set_text("")

    def begin(self) -> None:
        """A request begins."""
        self._done = [0.0] * len(self.results)
        self._progress.set_value(0)
        self._progress.set_visibility(self.purpose.is_drawing)
        self._stop.set_visibility(True)
        for _, results in self.results:
            results.clear()

    def tell_place(self, before: int) -> None:
        """Say how many requests come first."""
        requests = "1 request comes" if before == 1 else f"{before} requests come"
        self._status.set_text(f"Waiting: {requests} before yours." if before else f"{self._doing}…")

    def tell_progress(self, of: Served, part: float) -> None:
        """Say how much a model has drawn, from 0 to 1; what is shown is the mean of all models."""
        self._done = [part if model is of else done for (model, _), done in zip(self.results, self._done, strict=True)]
        self._progress.set_value(round(sum(self._done) / len(self._done), 3))

    def tell_busy(self, other: "Panel") -> None:
        """Say that this one has to wait for another tab of the page, until `tell_free`."""
        self._is_busy = True
        self._status.set_text(f"Your other tab, {other.purpose.name}, is at work: wait for it, or stop it there.")

    def tell_free(self) -> None:
        """Take back what `tell_busy` said."""
        if self._is_busy:
            self._is_busy = False
            self._status.set_text("")

    def end(self, line: str) -> None:
        """A request has ended; say how."""
        self._status.set_text(line)
        self._stop.set_visibility(False)
        self._progress.set_visibility(False)

    @property
    def _doing(self) -> str:
        return "Drawing" if self.purpose.is_drawing else "Looking"
