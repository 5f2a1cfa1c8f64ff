"""The low-resolution input of a super-resolution model, computed from an image's tokens on the device."""

import numpy as np
import torch
from torch import Tensor

from pipeline.images import palette
from pipeline.images.palette_table import lookup_table


class Reducer:
    """Shrinks token images: averages colours over squares, then takes the nearest palette colour.

    Equal to decoding the tokens, shrinking the image as a dataset build does (Pillow's box filter, which rounds after
    each of its two passes) and quantizing it again.
    """

    def __init__(self, palette_K3: np.ndarray, *, resolution: int, low_resolution: int, device: torch.device) -> None:
        self._side, self._low = resolution, low_resolution
        pixels_K3 = palette.to_pixels(np.arange(len(palette_K3)), palette_K3)
        self._pixels_K3 = torch.from_numpy(pixels_K3.astype(np.float32)).to(device)
        # int32: indexing is not implemented for uint16 on every device.
        self._table = torch.from_numpy(lookup_table(palette_K3).astype(np.int32)).to(device)

    def __call__(self, tokens_BT: Tensor) -> Tensor:
        """Map tokens, int64 [B, T], to the tokens of the small images, int64 [B, P]."""
        low, square = self._low, self._side // self._low
        pixels_BHwW3 = self._pixels_K3[tokens_BT].view(len(tokens_BT), self._side, low, square, 3)
        narrow_BHw3 = torch.floor(pixels_BHwW3.mean(3) + 0.5)
        small_Bhw3 = torch.floor(narrow_BHw3.view(len(tokens_BT), low, square, low, 3).mean(2) + 0.5).int()
        red, green, blue = small_Bhw3.unbind(3)
        return self._table[((red << 16) | (green << 8) | blue).long()].long().view(len(tokens_BT), low * low)
