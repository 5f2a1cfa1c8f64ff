"""A model in memory with its palette and class names, and the folder it is kept in.

The folder holds weights.safetensors, model.json and palette.npy; nothing is pickled.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor

from igpt_model.model.config import ModelConfig
from igpt_model.model.network import ImageGPT
from pipeline.errors import IgptError, first_line
from pipeline.images import palette as palettes
from pipeline.images.decode import centre_square

FILES = ("model.json", "palette.npy", "weights.safetensors")


@dataclass(frozen=True, kw_only=True)
class ModelBundle:
    """A model with what its tokens mean: the palette, float32 [K, 3], and the class names of its dataset."""

    model: ImageGPT
    palette_K3: np.ndarray
    classes: tuple[str, ...]

    def quantize(self, pictures_NHW3: np.ndarray) -> np.ndarray:
        """Pictures, uint8 [N, H, W, 3], as palette tokens, int64 [N, H * W]: the nearest colour of each pixel."""
        rgb_K3 = palettes.to_rgb(self.palette_K3)
        # A few pictures: comparing with every colour beats making the table of all 2^24.
        tokens = [
            ((picture.reshape(-1, 1, 3) - rgb_K3) ** 2).sum(-1).argmin(1)
            for picture in pictures_NHW3.astype(np.float64)
        ]
        return np.stack(tokens)

    def shrink(self, pictures_NHW3: np.ndarray) -> np.ndarray:
        """What a super-resolution model is given of pictures, uint8 [N, H, W, 3]: the tokens of their small versions.

        int64 [N, P]. Raises IgptError for a model of another kind.
        """
        side = self.model.config.low_resolution
        if side is None:
            raise IgptError("this model does not upscale: it was trained without low_resolution")
        return self.quantize(np.stack([centre_square(Image.fromarray(picture), side) for picture in pictures_NHW3]))

    def pictures(self, tokens_NT: np.ndarray) -> np.ndarray:
        """Tokens of square images, any integer type [N, T], as pictures, uint8 [N, side, side, 3]."""
        side = round(tokens_NT.shape[1] ** 0.5)
        return palettes.to_pixels(tokens_NT.reshape(-1, side, side), self.palette_K3)

    def described(self) -> dict[str, bytes]:
        """The two files beside the weights: what model it is, and its palette."""

        description = {
            "model": asdict(self.model.config),
            "classes": self.classes,
            "palette_sha256": palettes.sha256(self.palette_K3),
        }
        return {
            "model.json": json.dumps(description, indent=1, sort_keys=True).encode(),
            "palette.npy": palettes.to_bytes(self.palette_K3),
        }

    def save(self, folder: Path) -> None:
        """Write the three files into a folder."""
        safetensors.torch.save_model(self.model, str(folder / "weights.safetensors"))
        for name, data in self.described().items():
            (folder / name).write_bytes(data)

    @classmethod
    def load(cls, folder: Path, *, origin: str | None = None) -> "ModelBundle":
        """Read a folder that came from `origin` (none: it lies where it always did).

        Raises IgptError when a file is missing, damaged or does not fit the others.
        """
        return cls.assemble(
            folder, lambda model: safetensors.torch.load_file(folder / "weights.safetensors"), origin=origin
        )

    @classmethod
    def assemble(
        cls, folder: Path, weights: Callable[[ImageGPT], Mapping[str, Tensor]], *, origin: str | None = None
    ) -> "ModelBundle":
        """Read what is described in a folder; `weights` gives those of a model that has none yet.

        Otherwise as `load`.
        """
        origin = origin or str(folder)
        try:
            description = json.loads((folder / "model.json").read_text())
            palette_K3 = palettes.from_bytes((folder / "palette.npy").read_bytes(), f"{origin}/palette.npy")
            if palettes.sha256(palette_K3) != description["palette_sha256"]:
                raise IgptError(f"{origin}: the palette is not the model's (its checksum differs)")
            with torch.device("meta"):  # initial weights would take long to draw, and are not needed
                model = ImageGPT(ModelConfig(**description["model"]))
            model.load_state_dict(weights(model), assign=True)
        except FileNotFoundError as error:
            raise IgptError(f"{origin}: not a model folder, {Path(error.filename or '?').name} is missing") from None
        except (ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise IgptError(f"{origin}: damaged model folder ({first_line(error)})") from None
        return cls(model=model.eval(), palette_K3=palette_K3, classes=tuple(description["classes"]))
