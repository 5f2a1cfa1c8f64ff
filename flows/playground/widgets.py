"""The parts of the page that need code in the browser. Each JavaScript file beside this module is one of them."""

from collections.abc import Callable

import numpy as np
from nicegui.element import Element
from nicegui.events import GenericEventArguments

from flows.playground.pictures import Square


class PictureInput(Element, component="picture_input.js"):
    """Takes a picture: dropped, pasted, or from a dialog, which on a phone offers the camera; posts it to a path."""

    def __init__(self, path: str, most_bytes: int, on_refused: Callable[[str], None]) -> None:
        """`on_refused` is called with a line, when the server's answer is one."""
        super().__init__()
        self._props["path"] = path
        self._props["most-bytes"] = most_bytes
        self.on("refused", lambda event: on_refused(str(event.args)[:300]))


class SquareChooser(Element, component="square_chooser.js"):
    """Shows a picture with a square, which is moved and sized by pointer, sliders or keys."""

    def __init__(self, on_choose: Callable[[Square], None]) -> None:
        super().__init__()

        def choose(event: GenericEventArguments) -> None:
            left, top, side = (float(event.args[name]) for name in ("left", "top", "side"))
            if np.isfinite([left, top, side]).all():
                on_choose(Square(left=left, top=top, side=side))

        self.on("choose", choose, ["left", "top", "side"])

    def show(self, source: str, size: tuple[int, int], square: Square) -> None:
        """Show a picture of a width and a height, from a data URL."""
        self._props["source"] = source
        self._props["ratio"] = size[0] / size[1]
        self._props["square"] = {"left": square.left, "top": square.top, "side": square.side}
        self.update()


class PixelBoard(Element, component="pixel_board.js"):
    """Shows a picture as a model sees it, whose pixels are rubbed out by pointer or keys."""

    def __init__(self, on_change: Callable[[np.ndarray], None]) -> None:
        """`on_change` is called with the known pixels, bool [R, R]."""
        super().__init__()
        self._side = 1

        def change(event: GenericEventArguments) -> None:
            text = str(event.args)
            if len(text) == self._side**2:
                self._props["known"] = text  # else the same one shown again would change nothing in the browser
                on_change(np.array([character == "1" for character in text]).reshape(self._side, self._side))

        self.on("change", change)

    def show(self, source: str, known_RR: np.ndarray) -> None:
        """Show a picture from a data URL, with its known pixels, bool [R, R]."""
        self._side = len(known_RR)
        self._props["source"] = source
        self._props["side"] = self._side
        self._props["known"] = "".join("1" if known else "0" for known in known_RR.reshape(-1).tolist())
        self.update()
