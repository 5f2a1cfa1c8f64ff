"""What one open page holds: a picture, the square of it that is used, and which of its pixels are known."""

import numpy as np
from PIL import Image

from flows.playground import pictures
from flows.playground.facts import Facts
from flows.playground.pictures import Square


class Session:
    """The picture of one page. `side` is the resolution at which pixels are rubbed out."""

    def __init__(self, side: int) -> None:
        self.picture: Image.Image | None = None
        self.square = Square.centre(1, 1)
        self.known_RR = np.zeros((side, side), bool)
        self.keep_rows(side // 2)

    @property
    def side(self) -> int:
        """Rows and columns of the known pixels."""
        return len(self.known_RR)

    def use(self, picture: Image.Image) -> None:
        """Take a picture, with the square in its middle."""
        self.picture, self.square = picture, Square.centre(*picture.size)

    def keep_rows(self, rows: int) -> None:
        """Know the upper rows, and nothing else."""
        rows = max(0, min(self.side, rows))
        self.known_RR = np.repeat(np.arange(self.side) < rows, self.side).reshape(self.side, self.side)

    def picture_for(self, model: Facts) -> np.ndarray:
        """The square at a model's resolution, uint8 [R, R, 3]; there must be a picture."""
        assert self.picture is not None
        return pictures.cropped(self.picture, self.square, model.config.resolution)

    def known_for(self, model: Facts) -> np.ndarray:
        """The known pixels at a model's resolution, bool [R, R]."""
        return pictures.resized(self.known_RR, model.config.resolution)
