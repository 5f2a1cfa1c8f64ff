"""The loss of a finished model on the images of a split, shard by shard; ray.py does that in tasks."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch

from igpt_model.data.same_tokens import check_same_tokens
from igpt_model.inference.passes import images_per_pass
from igpt_model.inference.precision import half_on_gpu
from igpt_model.model.bundle import ModelBundle
from igpt_model.model.losses import draw_masks, image_losses
from igpt_model.model.low_resolution import Reducer
from igpt_model.model.network import Condition
from pipeline.dataset.snapshot import Snapshot
from pipeline.errors import IgptError
from pipeline.samples.shard_cache import Images

# The masks of a training with default settings; models of other masks are evaluated on the same pixels.
_MASK_SEED, _MASK_FRACTION = 0, 0.15


@dataclass(frozen=True, kw_only=True)
class SplitLoss:
    """The loss of a model on all images of a split."""

    nats_per_pixel: float
    """The mean over images; of a masked model, over 15% of their pixels, the same for all models."""
    images: int
    objective: str

    @property
    def bits_per_pixel(self) -> float:
        """`nats_per_pixel` in bits."""
        return self.nats_per_pixel / math.log(2)

    def to_bytes(self) -> bytes:
        """The loss as JSON."""
        return json.dumps(asdict(self), sort_keys=True).encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> "SplitLoss | None":
        """A loss from JSON; None when it is damaged."""
        try:
            return cls(**json.loads(content))
        except (ValueError, TypeError):
            return None

    @classmethod
    def of_sums(cls, sums: Sequence[float], bundle: ModelBundle, images: int) -> "SplitLoss":
        """The mean from the sums of shards, whose order does not matter to the last digit."""
        return cls(nats_per_pixel=math.fsum(sums) / images, images=images, objective=bundle.model.config.objective)


def check_can_be_evaluated(bundle: ModelBundle, snapshot: Snapshot) -> None:
    """Raise IgptError when a model has another resolution, palette or classes than the dataset."""
    check_same_tokens(bundle, snapshot)
    if bundle.model.config.classes is not None and bundle.classes != tuple(snapshot.classes):
        raise IgptError(
            f"{snapshot.dataset}: its classes are not those of the model, or in another order, and the model is "
            "class-conditional; evaluate it on a dataset of its classes"
        )


@torch.inference_mode()
def sum_of_nats(bundle: ModelBundle, images: Images, first_place: int) -> float:
    """The sum of the losses of images, each in nats per pixel; `first_place` is the place of the first in the split.

    Exact in float32; in bfloat16 on a GPU to 0.01 nats. Raises IgptError when a class is needed and missing.
    """
    model, device = bundle.model, bundle.model.positions.device
    reduce = None
    if model.config.low_resolution is not None:
        reduce = Reducer(
            bundle.palette_K3,
            resolution=model.config.resolution,
            low_resolution=model.config.low_resolution,
            device=device,
        )
    if model.config.classes is not None and (images.labels_N < 0).any():
        raise IgptError("the model is class-conditional, and some images of the dataset have no class")
    batch, total = images_per_pass(model.config, device, logits=True), 0.0
    for start in range(0, len(images.labels_N), batch):
        rows = slice(start, start + batch)
        tokens_BT = torch.from_numpy(images.tokens_NT[rows].astype(np.int64)).to(device)
        labels_B, masked_BT = None, None
        if model.config.classes is not None:
            labels_B = torch.from_numpy(images.labels_N[rows]).to(device)
        if model.config.objective == "masked":
            places_B = torch.arange(len(tokens_BT), device=device) + first_place + start
            masked_BT = draw_masks(
                places_B,
                model.config.positions,
                seed=_MASK_SEED,
                purpose="evaluation mask",
                fraction=_MASK_FRACTION,
            )
        condition = Condition(labels_B=labels_B, low_BP=None if reduce is None else reduce(tokens_BT))
        with half_on_gpu(device):
            logits_BTK = model(tokens_BT, condition, masked_BT)
        total += float(image_losses(logits_BTK, tokens_BT, masked_BT).double().sum())
    return total
