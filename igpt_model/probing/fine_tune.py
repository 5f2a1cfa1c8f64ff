"""Full fine-tuning: trains all weights and a linear classifier on the averaged final features (Chen et al., 3.3)."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from igpt_model.inference.precision import half_on_gpu
from igpt_model.model.bundle import ModelBundle
from igpt_model.model.losses import image_losses
from igpt_model.model.network import Condition, ImageGPT
from igpt_model.probing.config import FineTuneConfig
from igpt_model.probing.labelled import SplitTokens
from igpt_model.probing.result import TrainedScore
from igpt_model.probing.trained_classifier import train_and_score


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


def fine_tune(bundle: ModelBundle, splits: SplitTokens, config: FineTuneConfig) -> TrainedScore:
    """Fine-tune a copy of the model with a classifier; score the weights with the best validation accuracy on test.

    The generative loss is used for autoregressive models only: a masked model sees images without masks here.
    """
    device = bundle.model.positions.device
    classifier = _Classifier(copy.deepcopy(bundle.model), splits.classes).to(device)
    generative = config.generative_weight if bundle.model.config.objective == "autoregressive" else 0.0

    def loss(tokens_BT: Tensor, labels_B: Tensor) -> Tensor:
        with half_on_gpu(device):
            logits_BK, y_BTC = classifier(tokens_BT, _condition(bundle, tokens_BT))
            classification = F.cross_entropy(logits_BK.float(), labels_B)
            if not generative:
                return classification
            return classification + generative * image_losses(classifier.model.head(y_BTC), tokens_BT).mean()

    def logits(tokens_BT: Tensor) -> Tensor:
        with half_on_gpu(device):
            return classifier(tokens_BT, _condition(bundle, tokens_BT))[0]

    return train_and_score(classifier, splits, config, loss=loss, logits=logits)


def _condition(bundle: ModelBundle, tokens_BT: Tensor) -> Condition:
    if bundle.model.config.low_resolution is None:
        return Condition()
    low_NP = bundle.shrink(bundle.pictures(tokens_BT.cpu().numpy()))
    return Condition(low_BP=torch.from_numpy(low_NP).to(tokens_BT.device))
