"""The page: a picture on one side, what the models make of it on the other. One `Page` for each open tab."""

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
from nicegui import ui
from PIL import Image

from flows.playground import pictures
from flows.playground.controls import Controls
from flows.playground.limits import Limits
from flows.playground.panel import PURPOSES, Panel, Served
from flows.playground.pictures import Square
from flows.playground.protocol import Draw, Growing, Look
from flows.playground.results import ModelResults, about, heading
from flows.playground.session import Session
from flows.playground.turns import Turns, all_answers
from flows.playground.widgets import PictureInput, PixelBoard, SquareChooser
from pipeline.errors import IgptError, unforeseen_line

_TASKS = {"Complete": "complete", "Draw new": "sample", "Enlarge": "upscale"}


class Page:
    """What one tab shows, and what its buttons do."""

    def __init__(self, models: Sequence[Served], turns: Turns, limits: Limits, *, user: str, path: str) -> None:
        """`user`: who has opened it. `path`: where the browser posts a picture, for `take`."""
        self._models, self._turns, self._limits, self._user = models, turns, limits, user
        self._session = Session(models[0].facts.config.resolution)
        self._task: asyncio.Task[Any] | None = None
        self._at_work: Panel | None = None
        self._is_computing = self._is_stopping = False
        self._panels: list[Panel] = []
        with ui.element("header").classes("top"):
            heading("Image GPT playground", 1)
            ui.label(" · ".join(model.facts.name for model in models)).classes("subtitle")
        with ui.element("main").classes("sides"):
            with ui.element("section").classes("card").props('aria-label="Your picture"'):
                self._build_picture(path)
            with ui.element("section").classes("card").props('aria-label="What the model makes of it"'):
                self._build_tabs()

    def _build_picture(self, path: str) -> None:
        heading("Your picture")
        PictureInput(path, self._limits.file_bytes, self._complain)
        self._hint = ui.label("No picture at hand? Draw new ones, and use one of them.").classes("caption")
        self._hint.set_visibility(any(model.facts.draws for model in self._models))
        self._complaint = ui.label().props("role=alert").classes("complaint")
        self._complaint.set_visibility(False)
        with ui.column().classes("picture") as self._picture:
            self._chooser = SquareChooser(self._choose)
            ui.label("What the model is given. Drag over it to rub pixels out.").classes("caption")
            self._board = PixelBoard(self._rub)
            side = self._session.side
            with ui.row().classes("keep"):
                self._rows = ui.number("Rows to keep", value=side // 2, min=0, max=side, step=1)
                self._rows.props("outlined dense").on_value_change(lambda event: self._keep_rows(event.value))
                ui.button("Keep all", on_click=lambda: self._keep_all(side)).props("flat dense no-caps")
        self._picture.set_visibility(False)

    def _build_tabs(self) -> None:
        facts = [model.facts for model in self._models]
        purposes = [purpose for purpose in PURPOSES if any(map(purpose.serves, facts))]
        drawing = {purpose.name for purpose in purposes if purpose.is_drawing}
        with ui.tabs().props("no-caps align=left outside-arrows mobile-arrows").classes("tabs") as tabs:
            for name in (*(purpose.name for purpose in purposes), "About"):
                ui.tab(name)
        self._controls = Controls(facts, self._limits)
        self._controls.card.bind_visibility_from(tabs, "value", backward=lambda name: name in drawing)
        self._controls.class_card.bind_visibility_from(tabs, "value", backward=lambda name: name != "About")
        first = purposes[0].name if purposes else "About"
        with ui.tab_panels(tabs, value=first, animated=False).props("keep-alive").classes("panels"):
            for purpose in purposes:
                with ui.tab_panel(purpose.name):
                    panel = Panel(
                        purpose, self._models, on_start=self._start, on_stop=self._stop, on_use=self._use_drawn
                    )
                    self._panels.append(panel)
            with ui.tab_panel("About"), ui.element("div").classes("models"):
                for model in facts:
                    about(model)

    async def take(self, data: bytes) -> None:
        """Take a file as the picture. Raises IgptError with the reason when it is none."""
        self._use(await asyncio.to_thread(pictures.opened, data, self._limits))

    def close(self) -> None:
        """The tab was closed."""
        if self._task is not None:
            self._task.cancel()

    def _use(self, picture: Image.Image) -> None:
        self._session.use(picture)
        self._complaint.set_visibility(False)
        self._hint.set_visibility(False)
        self._picture.set_visibility(True)
        self._chooser.show(pictures.preview(picture), picture.size, self._session.square)
        self._show_board()
        for panel in self._panels:
            panel.enable()

    def _use_drawn(self, picture: Image.Image) -> None:
        self._use(picture)
        ui.notify("This is your picture now.")

    def _complain(self, line: str) -> None:
        self._complaint.set_text(line)
        self._complaint.set_visibility(True)

    def _choose(self, square: Square) -> None:
        self._session.square = square
        self._show_board()

    def _rub(self, known_RR: np.ndarray) -> None:
        self._session.known_RR = known_RR

    def _keep_rows(self, rows: float | None) -> None:
        if rows is not None:
            self._session.keep_rows(round(rows))
            self._show_board()

    def _keep_all(self, side: int) -> None:
        self._rows.set_value(side)
        self._keep_rows(side)  # the number may have been this one, and pixels rubbed out since

    def _show_board(self) -> None:
        if self._session.picture is not None:
            self._board.show(self._seen_by(self._models[0]), self._session.known_RR)

    def _seen_by(self, model: Served) -> str:
        seen = pictures.as_seen(self._session.picture_for(model.facts), model.facts.palette_K3)
        return pictures.data_url(seen)

    async def _start(self, panel: Panel) -> None:
        """Do what a tab is for, when it is this person's turn."""
        if self._task is not None:
            if self._at_work is not None and self._at_work is not panel:
                panel.tell_busy(self._at_work)
            return
        self._task, self._is_computing, self._is_stopping = asyncio.current_task(), False, False
        self._at_work = panel
        panel.begin()
        line = ""
        try:
            async with self._turns.turn(self._user, panel.tell_place):
                self._is_computing = True
                asked = [self._ask(panel, model, results) for model, results in panel.results]
                line = "Done." if all(await all_answers(asked)) else ""
        except IgptError as error:
            line = str(error)
        except Exception as error:  # noqa: BLE001 (a bug: told in a line, since the page lives on)
            line = unforeseen_line(error)
        except asyncio.CancelledError:
            if not self._is_stopping:
                raise
        finally:
            self._task = None
            panel.end("Stopped." if self._is_stopping else line)
            for other in self._panels:
                other.tell_free()

    def _stop(self) -> None:
        self._is_stopping = True
        if self._is_computing:
            for model in self._models:
                model.process.stop()
        elif self._task is not None:
            self._task.cancel()

    async def _ask(self, panel: Panel, model: Served, results: ModelResults) -> bool:
        """Ask one model, and show its answer or what is wrong, whatever the other one says; whether it has answered."""
        if self._is_stopping:
            return False
        try:
            if panel.purpose.is_drawing:
                await self._draw(panel, model, results)
            else:
                picture_RR3 = self._session.picture_for(model.facts)
                label = self._controls.label_for(model.facts)
                results.show_seen(picture_RR3, await model.process.look(Look(picture_RR3=picture_RR3, label=label)))
        except IgptError as error:
            results.complain(str(error))
            return False
        return True

    async def _draw(self, panel: Panel, model: Served, results: ModelResults) -> None:
        facts, task, params = model.facts, _TASKS[panel.purpose.name], self._controls.params(model.facts)
        picture_RR3 = self._session.picture_for(facts) if panel.purpose.needs_picture else None
        known_RR = self._session.known_for(facts) if task == "complete" else None
        results.begin(params["samples"])
        if picture_RR3 is not None and known_RR is not None:
            results.show_kept(picture_RR3, known_RR)
        elif picture_RR3 is not None:
            results.show_small(picture_RR3)

        def see(growing: Growing) -> None:
            results.grow(growing, known_RR)
            panel.tell_progress(model, float(growing.done_B.mean()) / facts.config.resolution**2)

        asked = Draw(task=task, picture_RR3=picture_RR3, known_RR=known_RR, params=params)
        drawn = await model.process.draw(asked, see)
        if drawn is not None:
            results.finish(drawn.pictures_BRR3)
            panel.tell_progress(model, 1.0)
