"""Full fine-tuning: trains all weights and a linear classifier on the averaged final features (Chen et al., 3.3)."""

import copy
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from igpt_model.inference.precision import half_on_gpu
from igpt_model.model.bundle import ModelBundle
from igpt_model.model.losses import image_losses
from igpt_model.model.network import Condition, ImageGPT
from igpt_model.probing.config import FineTuneConfig
from igpt_model.probing.result import FineTuneScore

_EVALUATIONS = 8
_BATCH = 128


@dataclass(frozen=True, kw_only=True)
class LabelledTokens:
    """Images as tokens, int64 [n, T], and their classes, int64 [n]."""

    tokens_NT: np.ndarray
    labels_N: np.ndarray


class _Classifier(nn.Module):
    def __init__(self, model: ImageGPT, classes: int) -> None:
        super().__init__()
        self.model, self.head = model, nn.Linear(model.config.width, classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, tokens_BT: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        """Class logits, [B, classes], and the final features of the pixels, [B, T, C]."""
        y_BTC = self.model.transform(self.model.inputs(tokens_BT, condition))[:, self.model.config.low_positions :]
        return self.head(y_BTC.mean(1)), y_BTC


def fine_tune(
    bundle: ModelBundle, train: LabelledTokens, validation: LabelledTokens, test: LabelledTokens, config: FineTuneConfig
) -> FineTuneScore:
    """Fine-tune a copy of the model with a classifier; score the weights with the best validation accuracy on test.

    The generative loss is used for autoregressive models only: a masked model sees images without masks here.
    """
    device = bundle.model.positions.device
    classes = int(max(train.labels_N.max(), validation.labels_N.max(), test.labels_N.max())) + 1
    classifier = _Classifier(copy.deepcopy(bundle.model), classes).to(device).train()
    optimizer = torch.optim.Adam(classifier.parameters(), lr=config.learning_rate, betas=(0.9, 0.95))
    random = np.random.default_rng(config.seed)
    order = np.concatenate(
        [random.permutation(len(train.labels_N)) for _ in range(1 + config.steps * config.batch // len(train.labels_N))]
    )
    generative = config.generative_weight if bundle.model.config.objective == "autoregressive" else 0.0
    best_accuracy, best_step, best_weights = -1.0, 0, copy.deepcopy(classifier.state_dict())
    every = max(1, config.steps // _EVALUATIONS)
    for step in range(1, config.steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * _schedule(step, config.steps)
        rows = order[(step - 1) * config.batch : step * config.batch]
        tokens_BT = torch.from_numpy(train.tokens_NT[rows]).to(device)
        labels_B = torch.from_numpy(train.labels_N[rows]).to(device)
        with half_on_gpu(device):
            logits_BK, y_BTC = classifier(tokens_BT, _condition(bundle, tokens_BT))
            loss = F.cross_entropy(logits_BK.float(), labels_B)
            if generative:
                loss = loss + generative * image_losses(classifier.model.head(y_BTC), tokens_BT).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(classifier.parameters(), 1.0)
        optimizer.step()
        if step % every == 0 or step == config.steps:
            accuracy = _accuracy(bundle, classifier, validation)
            if accuracy > best_accuracy:
                best_accuracy, best_step = accuracy, step
                best_weights = copy.deepcopy(classifier.state_dict())
    classifier.load_state_dict(best_weights)
    return FineTuneScore(
        test_accuracy=_accuracy(bundle, classifier, test), validation_accuracy=best_accuracy, step=best_step
    )


def _schedule(step: int, steps: int) -> float:
    warmup = max(1, steps // 10)
    if step <= warmup:
        return step / warmup
    return 0.5 * (1 + float(np.cos(np.pi * (step - warmup) / max(1, steps - warmup))))


def _condition(bundle: ModelBundle, tokens_BT: Tensor) -> Condition:
    if bundle.model.config.low_resolution is None:
        return Condition()
    low_NP = bundle.shrink(bundle.pictures(tokens_BT.cpu().numpy()))
    return Condition(low_BP=torch.from_numpy(low_NP).to(tokens_BT.device))


@torch.inference_mode()
def _accuracy(bundle: ModelBundle, classifier: _Classifier, images: LabelledTokens) -> float:
    classifier.eval()
    right = 0
    for begin in range(0, len(images.labels_N), _BATCH):
        rows = slice(begin, begin + _BATCH)
        tokens_BT = torch.from_numpy(images.tokens_NT[rows]).to(bundle.model.positions.device)
        with half_on_gpu(tokens_BT.device):
            logits_BK, _ = classifier(tokens_BT, _condition(bundle, tokens_BT))
        right += int((logits_BK.argmax(1).cpu().numpy() == images.labels_N[rows]).sum())
    classifier.train()
    return right / len(images.labels_N)
