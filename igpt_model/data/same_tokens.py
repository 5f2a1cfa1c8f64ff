"""Whether a dataset's tokens mean to a model what they meant in its training: the same colours, in images of one size.

Losses per pixel of other palettes or resolutions do not compare either: with fewer colours, or smaller images, a pixel
carries another amount of information.
"""

from igpt_model.model.bundle import ModelBundle
from pipeline.dataset.snapshot import Snapshot
from pipeline.errors import IgptError
from pipeline.images import palette


def check_same_tokens(bundle: ModelBundle, snapshot: Snapshot) -> None:
    """Raise IgptError when a model has another resolution or palette than the dataset."""
    if bundle.model.config.resolution != snapshot.resolution:
        raise IgptError(
            f"{snapshot.dataset} has resolution {snapshot.resolution}, the model {bundle.model.config.resolution}: "
            "build the dataset with the model's resolution"
        )
    model_palette = palette.sha256(bundle.palette_K3)
    if model_palette != snapshot.palette_sha256:
        raise IgptError(
            f"{snapshot.dataset} has palette {snapshot.palette_sha256[:12]}, the model {model_palette[:12]}: "
            "build a dataset with the model's palette (`igpt models palette MODEL palette.npy` writes it, then "
            "`igpt dataset build --palette palette.npy ...`) and use that"
        )
