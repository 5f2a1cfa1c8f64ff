"""The loss on the validation split: on a fixed choice of its images while training, on all of them at the end."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from igpt_model.config import PretrainConfig
from igpt_model.data.batches import Preparation
from igpt_model.inference.passes import images_per_pass
from igpt_model.model.network import ImageGPT
from igpt_model.training.parallel import autocast
from igpt_model.training.step import losses
from igpt_model.worker import Worker
from pipeline.partition import part_of
from pipeline.samples.order import Samples
from pipeline.samples.shard_cache import Images, ShardImages, gather

_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class ValidationLoss:
    """Losses in nats per pixel, equal on every worker."""

    evaluated: float
    """The mean over the images that were evaluated."""
    chosen: float
    """The mean over those that every evaluation evaluates, so that it can be compared with other steps."""


def chosen_places(images: int, most: int) -> np.ndarray:
    """The places in a split of the images to evaluate while training, int64, rising.

    At most `most`, evenly spread, since neighbours have the same source; 0: all.
    """
    if not most or most >= images:
        return np.arange(images)
    return np.arange(most) * images // most


class Evaluation:
    """Evaluates models on the validation split; each worker evaluates a part. `beat` is called before each batch."""

    def __init__(
        self,
        shards: Sequence[ShardImages],
        preparation: Preparation,
        config: PretrainConfig,
        worker: Worker,
        beat: Callable[[], None],
    ) -> None:
        self._shards, self._preparation, self._config, self._worker = shards, preparation, config, worker
        self._beat = beat
        self._ends = np.cumsum([len(shard.labels_N) for shard in shards])
        self.images = int(self._ends[-1])
        """Number of images of the split."""
        self._chosen_N = chosen_places(self.images, config.tracking.evaluate_images)

    @torch.no_grad()
    def loss(self, model: ImageGPT, *, whole: bool) -> ValidationLoss:
        """The loss of a model on the whole split, or on the chosen images; all workers must call this together."""
        config, worker = self._config, self._worker
        places_N = np.arange(self.images) if whole else self._chosen_N
        share = part_of(len(places_N), worker.rank, worker.world_size)
        mine_N = places_N[share.start : share.stop]
        chosen_N = torch.from_numpy(np.isin(mine_N, self._chosen_N)).to(worker.device)
        size = min(_BATCH, config.execution.micro_batch or _BATCH)
        if worker.device.type == "cpu":
            size = min(size, images_per_pass(model.config, worker.device, logits=True))
        largest_share = -(-len(places_N) // worker.world_size)
        # Sum and number, of all and of the chosen.
        totals_22 = torch.zeros(2, 2, dtype=torch.float64, device=worker.device)
        model.eval()
        # As many batches on every worker, because FSDP needs as many forward passes; the last may be empty.
        for start in range(0, largest_share, size):
            self._beat()
            batch_N = mine_N[start : start + size]
            inputs = self._preparation.for_evaluation(self._preparation.on_host(self._at(batch_N)), batch_N)
            with autocast(config, worker.device):
                loss_B = losses(model, inputs).double()
            counted_2B = torch.stack([torch.ones_like(loss_B), chosen_N[start : start + size].double()])
            totals_22 += torch.stack([(counted_2B * loss_B).sum(1), counted_2B.sum(1)], 1)
        model.train()
        (total, number), (chosen_total, chosen_number) = worker.mean(totals_22).tolist()
        return ValidationLoss(evaluated=total / number, chosen=chosen_total / chosen_number)

    def _at(self, places_N: np.ndarray) -> Images:
        """The images at places of the split."""
        shards_N = np.searchsorted(self._ends, places_N, side="right")
        starts = np.concatenate([[0], self._ends[:-1]])
        return gather(self._shards, Samples(shards=shards_N, rows=places_N - starts[shards_N]))
