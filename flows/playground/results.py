"""Where the page shows what one model answers: pictures that grow, a heat map, classes; and what the model is."""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
from nicegui import ui
from PIL import Image

from flows.playground import pictures
from flows.playground.facts import Facts
from flows.playground.protocol import Growing, Near, Seen
from pipeline.images.decode import centre_square
from pipeline.printable import printable


def heading(text: str, level: int = 2) -> ui.label:
    """A heading, which assistive programs list."""
    return ui.label(text).props(f"role=heading aria-level={level}").classes(f"heading-{level}")


class Tile:
    """A picture with room for more below it."""

    def __init__(self, alt: str, caption: str = "", classes: str = "") -> None:
        with ui.element("figure").classes(f"tile {classes}") as self.figure:
            self._image = ui.element("img").classes("checkered")
            if caption:
                ui.label(caption).classes("caption")
        self._image.props["alt"] = alt

    def show(self, source: str, alt: str | None = None) -> None:
        """Show a data URL."""
        self._image.props["src"] = source
        if alt is not None:
            self._image.props["alt"] = alt
        self._image.update()


class ModelResults:
    """The answers of one model."""

    def __init__(self, model: Facts, *, is_named: bool, on_use: Callable[[Image.Image], None]) -> None:
        """`on_use` is given a drawn picture that a person wants to go on with."""
        self._model, self._on_use = model, on_use
        with ui.column().classes("results"):
            if is_named:
                heading(model.name, 3)
            self._complaint = ui.label().props("role=alert").classes("complaint")
            self._complaint.set_visibility(False)
            self._content = ui.element("div").classes("tiles")
        self._tiles: list[Tile] = []

    def begin(self, draws: int) -> None:
        """Make room for drawings."""
        self.clear()
        with self._content:
            self._given = ui.element("div").classes("given")
            self._tiles = [Tile(f"Picture {number + 1}, being drawn") for number in range(draws)]

    def show_kept(self, picture_RR3: np.ndarray, known_RR: np.ndarray) -> None:
        """Show what a completion is given."""
        seen = pictures.as_seen(picture_RR3, self._model.palette_K3)
        with self._given:
            Tile("The pixels that are kept", "kept").show(pictures.growing(seen[None], known_RR[None])[0])

    def show_small(self, picture_RR3: np.ndarray) -> None:
        """Show what an enlargement is given."""
        assert self._model.config.low_resolution is not None
        small = centre_square(Image.fromarray(picture_RR3), self._model.config.low_resolution)
        with self._given:
            source = pictures.data_url(pictures.as_seen(small, self._model.palette_K3))
            Tile("The small version that the model is given", "given").show(source)

    def grow(self, growing: Growing, known_RR: np.ndarray | None) -> None:
        """Show what is drawn so far."""
        final_BRR = pictures.final_pixels(growing.done_B, self._model.config.resolution, known_RR)
        for tile, source in zip(self._tiles, pictures.growing(growing.pictures_BRR3, final_BRR), strict=False):
            tile.show(source)

    def finish(self, pictures_BRR3: np.ndarray) -> None:
        """Show the drawings."""
        for number, (tile, picture_RR3) in enumerate(zip(self._tiles, pictures_BRR3, strict=False), 1):
            tile.show(pictures.data_url(picture_RR3), f"Picture {number}")
            with tile.figure:
                ui.button("Use this", on_click=partial(self._on_use, Image.fromarray(picture_RR3))).props(
                    f'flat dense no-caps aria-label="Use picture {number} as your picture"'
                )

    def complain(self, line: str) -> None:
        """Say what is wrong."""
        self._complaint.set_text(line)
        self._complaint.set_visibility(True)

    def clear(self) -> None:
        """Remove all answers."""
        self._content.clear()
        self._tiles = []
        self._complaint.set_visibility(False)

    def show_seen(self, picture_RR3: np.ndarray, seen: Seen) -> None:
        """Show what the model makes of a picture."""
        self.clear()
        with self._content:
            shown = pictures.as_seen(picture_RR3, self._model.palette_K3)
            Tile("Your picture in the colours of the model", "what the model sees", "large").show(
                pictures.data_url(shown)
            )
            if seen.nats_RR is not None:
                self._show_heat(seen.nats_RR)
            with ui.column().classes("told"):
                if seen.nats_per_pixel is not None:
                    self._tell_likelihood(seen.nats_per_pixel)
                if seen.classes:
                    _classes(seen.classes)
            if seen.nearest:
                _nearest(seen.nearest)

    def _show_heat(self, nats_RR: np.ndarray) -> None:
        most = max(float(nats_RR.max()), 1e-6)
        row, column = np.unravel_index(int(nats_RR.argmax()), nats_RR.shape)
        where = f"row {row + 1}, column {column + 1}"
        with ui.column().classes("heat"):
            Tile(f"Heat map: the brightest pixel is in {where}", "which pixels surprise it", "large").show(
                pictures.data_url(pictures.heat(nats_RR, most))
            )
            with ui.row().classes("legend"):
                ui.label("0")
                ui.element("div").classes("legend-bar").style(f"background: {pictures.heat_legend()}")
                ui.label(f"{most:.1f} nats")
            ui.label(f"Most surprising: {where}, {most:.2f} nats.").classes("caption")

    def _tell_likelihood(self, nats: float) -> None:
        ui.label(f"{nats:.3f} nats per pixel").classes("number")
        ui.label(f"{nats / math.log(2):.3f} bits per pixel; lower is likelier").classes("caption")
        if self._model.loss_nats is not None:
            rank = "likelier" if nats < self._model.loss_nats else "less likely"
            ui.label(f"Its validation pictures have {self._model.loss_nats:.3f} nats on average: yours is {rank}.")


def _classes(classes: tuple[tuple[str, float], ...]) -> None:
    ui.label("What its probe takes it for").classes("caption")
    for name, chance in classes:
        with ui.row().classes("chance"):
            ui.label(printable(name)).classes("chance-name")
            with ui.element("div").classes("chance-bar"):
                ui.element("div").style(f"width: {100 * chance:.1f}%")
            ui.label(f"{100 * chance:.1f}%").classes("chance-number")


def _nearest(images: tuple[Near, ...]) -> None:
    with ui.column().classes("nearest"):
        ui.label("The training pictures that are most like it to the model").classes("caption")
        with ui.element("div").classes("tiles"):
            for number, image in enumerate(images, 1):
                name = printable(image.class_name)
                tile = Tile(f"Training picture {number}, class {name}, likeness {image.cosine:.2f}", name, "near")
                tile.show(pictures.data_url(image.picture_RR3))


def about(model: Facts) -> None:
    """What a model is."""
    with ui.column().classes("about"):
        heading(model.name, 3)
        with ui.element("dl"):
            for label, text in model.rows:
                with ui.element("dt"):
                    ui.label(label)
                with ui.element("dd"):
                    ui.label(text)
