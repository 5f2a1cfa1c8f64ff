"""A model in memory with its palette and class names, and the folder it is stored in.

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
from pipeline.images import palette
from pipeline.images.decode import centre_square

FILES = ("model.json", "palette.npy", "weights.safetensors")


@dataclass(frozen=True, kw_only=True)
class ModelBundle:
    """A model with its palette, float32 [K, 3], and the class names of its dataset."""

    model: ImageGPT
    palette_K3: np.ndarray
    classes: tuple[str, ...]

    def quantize(self, pictures_NHW3: np.ndarray) -> np.ndarray:
        """Quantize pictures, uint8 [N, H, W, 3], to palette tokens, int64 [N, H * W]: each pixel's nearest colour."""
        rgb_K3 = palette.to_rgb(self.palette_K3)
        # For a few pictures, comparing with every colour is faster than building the table of all 2^24 colours.
        tokens = [
            ((picture.reshape(-1, 1, 3) - rgb_K3) ** 2).sum(-1).argmin(1)
            for picture in pictures_NHW3.astype(np.float64)
        ]
        return np.stack(tokens)

    def shrink(self, pictures_NHW3: np.ndarray) -> np.ndarray:
        """Shrink pictures, uint8 [N, H, W, 3], to the low-resolution tokens of a super-resolution model, int64 [N, P].

        Raises IgptError for a model of another kind.
        """
        side = self.model.config.low_resolution
        if side is None:
            raise IgptError("this model does not upscale: it was trained without low_resolution")
        return self.quantize(np.stack([centre_square(Image.fromarray(picture), side) for picture in pictures_NHW3]))

    def pictures(self, tokens_NT: np.ndarray) -> np.ndarray:
        """Convert tokens of square images, any integer type [N, T], to pictures, uint8 [N, side, side, 3]."""
        side = round(tokens_NT.shape[1] ** 0.5)
        return palette.to_pixels(tokens_NT.reshape(-1, side, side), self.palette_K3)

    def described(self) -> dict[str, bytes]:
        """The contents of the two files beside the weights: the model's description and its palette."""
        description = {
            "model": asdict(self.model.config),
            "classes": self.classes,
            "palette_sha256": palette.sha256(self.palette_K3),
        }
        return {
            "model.json": json.dumps(description, indent=1, sort_keys=True).encode(),
            "palette.npy": palette.to_bytes(self.palette_K3),
        }

    def save(self, folder: Path) -> None:
        """Write the three files into a folder."""
        safetensors.torch.save_model(self.model, str(folder / "weights.safetensors"))
        for name, data in self.described().items():
            (folder / name).write_bytes(data)

    @classmethod
    def load(cls, folder: Path, *, origin: str | None = None) -> "ModelBundle":
        """Load a model from a folder. Errors name `origin`, where a downloaded folder came from, or else the folder.

        Raises IgptError when a file is missing, damaged or does not match the others.
        """
        return cls.assemble(
            folder, lambda model: safetensors.torch.load_file(folder / "weights.safetensors"), origin=origin
        )

    @classmethod
    def assemble(
        cls, folder: Path, weights: Callable[[ImageGPT], Mapping[str, Tensor]], *, origin: str | None = None
    ) -> "ModelBundle":
        """Load a model from the description and palette in a folder; `weights` returns the weights for the empty model.

        Otherwise like `load`.
        """
        origin = origin or str(folder)
        try:
            description = json.loads((folder / "model.json").read_bytes())
            palette_K3 = palette.from_bytes((folder / "palette.npy").read_bytes(), f"{origin}/palette.npy")
            if palette.sha256(palette_K3) != description["palette_sha256"]:
                raise IgptError(f"{origin}: the palette is not the model's (its checksum differs)")
            with torch.device("meta"):  # skip drawing initial weights: it is slow, and they are replaced
                model = ImageGPT(ModelConfig(**description["model"]))
            model.load_state_dict(weights(model), assign=True)
        except FileNotFoundError as error:
            missing = Path(error.filename or "weights.safetensors").name  # safetensors' error names no file
            raise IgptError(f"{origin}: not a model folder, {missing} is missing") from None
        except (ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise IgptError(f"{origin}: damaged model folder ({first_line(error)})") from None
        return cls(model=model.eval(), palette_K3=palette_K3, classes=tuple(description["classes"]))
