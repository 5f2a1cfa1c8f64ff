"""A model with what a probe found: the layer for features, and the classifier, if one is attached."""

import json
from dataclasses import dataclass
from pathlib import Path

from igpt_model.model.bundle import ModelBundle
from igpt_model.probing.head import ProbeHead
from pipeline.errors import IgptError

FILE = "probed.json"


@dataclass(frozen=True, kw_only=True)
class ProbedModel:
    """A model, its layer for features and its classifier."""

    bundle: ModelBundle
    best_layer: int
    head: ProbeHead | None = None
    """A linear probe of the best layer."""

    @classmethod
    def unprobed(cls, bundle: ModelBundle) -> "ProbedModel":
        """A model that nobody has probed: features are best near the middle layer (Chen et al. 2020, section 4.1)."""
        return cls(bundle=bundle, best_layer=bundle.model.config.layers // 2)

    def save(self, folder: Path) -> None:
        """Write the files of the model and of its probe into a folder."""
        self.bundle.save(folder)
        (folder / FILE).write_text(json.dumps({"best_layer": self.best_layer}))
        if self.head is not None:
            self.head.save(folder)

    @classmethod
    def load(cls, folder: Path, *, origin: str | None = None) -> "ProbedModel":
        """Read what `save` wrote. Errors name `origin`. Raises IgptError when a file is missing or damaged."""
        bundle = ModelBundle.load(folder, origin=origin)
        try:
            best_layer = int(json.loads((folder / FILE).read_text())["best_layer"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            raise IgptError(f"{origin or folder}: {FILE} is missing or damaged; register the model again") from None
        return cls(bundle=bundle, best_layer=best_layer, head=ProbeHead.load(folder))
