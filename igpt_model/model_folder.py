"""A model as a folder that anything can open: weights.safetensors, model.json and palette.npy, nothing pickled."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
from safetensors import SafetensorError

from igpt_model.config import ModelConfig
from igpt_model.model import ImageGPT
from pipeline import palette as palettes
from pipeline.errors import IgptError


@dataclass(frozen=True, kw_only=True)
class ModelFolder:
    """A model with what its tokens mean: the palette, float32 [K, 3], and the class names of its dataset."""

    model: ImageGPT
    palette_K3: np.ndarray
    classes: tuple[str, ...]

    def save(self, folder: Path) -> None:
        """Write the three files into a folder."""
        safetensors.torch.save_model(self.model, str(folder / "weights.safetensors"))
        palette = palettes.to_bytes(self.palette_K3)
        (folder / "palette.npy").write_bytes(palette)
        description = {
            "model": asdict(self.model.config),
            "classes": self.classes,
            "palette_sha256": hashlib.sha256(palette).hexdigest(),
        }
        (folder / "model.json").write_text(json.dumps(description, indent=1, sort_keys=True))

    @classmethod
    def load(cls, folder: Path) -> "ModelFolder":
        """Read a folder. Raises IgptError when a file is missing, damaged or does not fit the others."""
        try:
            description = json.loads((folder / "model.json").read_text())
            palette_K3 = palettes.from_bytes((folder / "palette.npy").read_bytes(), str(folder / "palette.npy"))
            if palettes.sha256(palette_K3) != description["palette_sha256"]:
                raise IgptError(f"{folder}: the palette is not the model's (its checksum differs)")
            model = ImageGPT(ModelConfig(**description["model"]))
            safetensors.torch.load_model(model, folder / "weights.safetensors")
        except FileNotFoundError as error:
            raise IgptError(f"{folder}: not a model folder, {Path(error.filename or '?').name} is missing") from None
        except (ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise IgptError(f"{folder}: damaged model folder ({str(error).splitlines()[0]})") from None
        return cls(model=model.eval(), palette_K3=palette_K3, classes=tuple(description["classes"]))
