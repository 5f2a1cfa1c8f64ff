"""The number format in which a finished model computes: on a GPU bfloat16.

Weights, normalizations and the residual stream stay float32. Against float32 the features of a layer move by less than
2% of their size, and the nats of an image by less than 0.01 a pixel (`test_precision.py`).
"""

from contextlib import AbstractContextManager, nullcontext

import torch


def half_on_gpu(device: torch.device) -> AbstractContextManager[object]:
    """The context of a forward pass on a device; on a CPU float32, as the model's weights are."""
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()
