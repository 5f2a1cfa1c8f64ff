"""The training state of a worker: model, parallel wrapper, optimizer, and the average of the weights."""

import torch
from torch import Tensor

from igpt_model.config import PretrainConfig
from igpt_model.data.batches import Inputs
from igpt_model.model.config import ModelConfig
from igpt_model.model.network import ImageGPT
from igpt_model.runs import checkpoint
from igpt_model.runs.checkpoint import Checkpoint, Fetch
from igpt_model.training.muon import MOMENTUM
from igpt_model.training.optim import make_optimizer, update_average
from igpt_model.training.parallel import copy_whole, make_model, parallelize
from igpt_model.training.step import settle
from igpt_model.worker import Worker
from pipeline.errors import IgptError


class Learner:
    """Initialized equally on every worker: the weights are the parent's, or a function of the seed."""

    def __init__(
        self, model_config: ModelConfig, config: PretrainConfig, worker: Worker, parent: ImageGPT | None = None
    ) -> None:
        self._config, self._worker = config, worker
        torch.manual_seed(config.optimizer.seed)
        self.model = make_model(model_config, config, worker)
        if parent is not None:
            given = parent.state_dict()
            for name, weight in self.model.named_parameters():
                copy_whole(weight, given[name])
        self.average: ImageGPT | None = None
        if config.optimizer.ema_decay is not None:
            self.average = make_model(model_config, config, worker, trained=False)
            self.average.load_state_dict(self.model.state_dict())
        self.parallel = parallelize(self.model, worker, config)
        # After sharding, which replaces the parameters of the model.
        self.optimizer = make_optimizer(self.model, config, worker)

    @property
    def evaluated(self) -> ImageGPT:
        """The model to evaluate and save: the average of the weights if there is one."""
        return self.average or self.model

    def tensors(self) -> dict[str, Tensor]:
        """The tensors to store in a checkpoint, by name."""
        return checkpoint.tensors_of(self.model, self.optimizer, self.average)

    def restore(self, saved: Checkpoint, fetch: Fetch) -> None:
        """Load the state from a checkpoint; raises like Checkpoint.restore, and IgptError for another optimizer's."""
        stored = "muon" if any(name.endswith(f".{MOMENTUM}") for name in saved.index.tensors) else "adam"
        if stored != self._config.optimizer.optim:
            raise IgptError(
                f"{saved.url}: the checkpoint is of optim {stored} and the config has {self._config.optimizer.optim}; "
                f"set optim to {stored}, or use another runs folder"
            )
        saved.restore(self.model, self.optimizer, self.average, fetch)

    def settle(self, inputs: Inputs) -> None:
        """Make gradient sums reproducible from the first step on; see step.settle."""
        settle(self.parallel, inputs, self._config, self._worker)

    def follow(self, step: int, applied: Tensor) -> None:
        """Update the average of the weights after a step (from 1), unless that was skipped (`applied` is 0)."""
        if self.average is not None and self._config.optimizer.ema_decay is not None:
            average, weights = list(self.average.parameters()), list(self.model.parameters())
            update_average(average, weights, decay=self._config.optimizer.ema_decay, step=step, applied=applied)
