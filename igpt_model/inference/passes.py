"""How many images go through a model in one pass where no gradients are wanted.

On a CPU few: the C library gives a block of more than 32 MiB back to the system when it is freed, and the next layer
has every page of its own cleared again: a third of the CPU time. (benchmarks/passes.py, images per CPU second with the
bound against without: 1.50 for features and 1.49 for scores with 5 million parameters at 32x32.) A GPU's memory is kept
by PyTorch, and larger passes fill it.
"""

import torch

from igpt_model.model.config import ModelConfig

_MOST_IMAGES = 128
_LOGIT_PIXELS = 1 << 16  # of 512 colours: 128 MiB of logits
_TENSOR_BYTES = 16 << 20


def images_per_pass(config: ModelConfig, device: torch.device, *, logits: bool = False) -> int:
    """The number of images of a pass, 1 or more; `logits` where the pass goes on to those of every pixel."""
    most = max(1, _LOGIT_PIXELS // config.positions) if logits else _MOST_IMAGES
    if device.type != "cpu":
        return most
    widest = max(4 * config.width, config.colours if logits else 0)
    return max(1, min(most, _TENSOR_BYTES // (4 * widest * config.sequence)))
