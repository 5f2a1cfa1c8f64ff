"""What a worker trains: the model, its parallel form, its optimizer, and the average of its weights."""

import torch
from torch import Tensor

from igpt_model.config import PretrainConfig
from igpt_model.data.batches import Inputs
from igpt_model.model.config import ModelConfig
from igpt_model.model.network import ImageGPT
from igpt_model.runs import checkpoint
from igpt_model.runs.checkpoint import Checkpoint, Fetch
from igpt_model.training.optim import make_optimizer, update_average
from igpt_model.training.parallel import parallelize, prepare_blocks, shard
from igpt_model.training.step import settle
from igpt_model.worker import Worker


class Learner:
    """Made alike on every worker: the initial weights are the parent's, or a function of the seed."""

    def __init__(
        self, model_config: ModelConfig, config: PretrainConfig, worker: Worker, parent: ImageGPT | None = None
    ) -> None:
        self._config, self._worker = config, worker
        torch.manual_seed(config.optimizer.seed)
        self.model = ImageGPT(model_config).to(worker.device)
        if parent is not None:
            self.model.load_state_dict(parent.state_dict())
        self.average: ImageGPT | None = None
        if config.optimizer.ema_decay is not None:
            self.average = ImageGPT(model_config).to(worker.device).requires_grad_(False)
            self.average.load_state_dict(self.model.state_dict())
            prepare_blocks(self.average, config)
            if worker.world_size > 1 and config.execution.parallelism == "fsdp":
                shard(self.average, worker)
        prepare_blocks(self.model, config)
        self.parallel = parallelize(self.model, worker, config)
        # Only now: sharding gives the model other parameters.
        self.optimizer = make_optimizer(self.model, config)

    @property
    def evaluated(self) -> ImageGPT:
        """The model that is judged and kept: the average of the weights, where there is one."""
        return self.average or self.model

    def tensors(self) -> dict[str, Tensor]:
        """All that a checkpoint keeps of it, by name."""
        return checkpoint.tensors_of(self.model, self.optimizer, self.average)

    def restore(self, found: Checkpoint, fetch: Fetch) -> None:
        """Become what it was at a checkpoint; raises as Checkpoint.restore does."""
        found.restore(self.model, self.optimizer, self.average, fetch)

    def settle(self, inputs: Inputs) -> None:
        """Add up gradients from the first step on as in all later ones."""
        settle(self.parallel, inputs, self._config, self._worker)

    def follow(self, step: int) -> None:
        """Move the average of the weights after a step (from 1)."""
        if self.average is not None and self._config.optimizer.ema_decay is not None:
            weights = (list(model.parameters()) for model in (self.average, self.model))
            update_average(*weights, decay=self._config.optimizer.ema_decay, step=step)
