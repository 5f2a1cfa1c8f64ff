"""The number format in which a finished model computes: on a GPU bfloat16.

For features, scores and fine-tuning the weights, normalizations and the residual stream stay float32. Against float32
the features of a layer move by less than 2% of their size, and the nats of an image by less than 0.01 a pixel.

Drawing computes in bfloat16 throughout. Against float32 the log-probability of a pixel's colour moves by less than 0.1
nats, the nats of an image by less than 0.01 a pixel, and the distribution of a pixel by a total variation of less than
0.03, on average 0.01. So images come from almost the same distribution, and are not the same images: with the same
random numbers, one pixel in twenty differs at 8x8. Measured on a CPU, to a depth of 24 layers, by `test_precision.py`.
"""

from contextlib import AbstractContextManager, nullcontext

import torch

from igpt_model.model.network import ImageGPT


def half_on_gpu(device: torch.device) -> AbstractContextManager[object]:
    """The context of a forward pass on a device; on a CPU float32, as the model's weights are."""
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()


def in_bfloat16(model: ImageGPT) -> ImageGPT:
    """The same model with weights in bfloat16."""
    with torch.device("meta"):
        half = ImageGPT(model.config)
    half.load_state_dict({name: value.bfloat16() for name, value in model.state_dict().items()}, assign=True)
    return half
