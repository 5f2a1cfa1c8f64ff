"""Linear layers without bias, and the fastest exact way to compute them on a CPU.

For float32 matrix products PyTorch calls MKL, which uses half of the vector width on non-Intel processors. oneDNN uses
all of it, and PyTorch calls oneDNN for convolutions: a 1x1 convolution is the same product, gradients included.
(Measured on two cores of an AMD EPYC with AVX-512: 206 GFLOP/s as a matrix product, 410 as a convolution.)
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_MIN_ROWS, _MIN_WIDTH = 512, 64  # below these, preparing the convolution costs more than it saves
_ONEDNN = torch.backends.mkldnn.is_available()
_CONVOLUTION_BATCH = 16  # with a smaller batch on one thread, PyTorch does not use oneDNN for a 1x1 convolution


class Linear(nn.Module):
    """A linear layer without bias: x @ weight.T, weight [out, in]."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))

    def forward(self, x_BSC: Tensor) -> Tensor:
        """Map the last dimension; [B, S, in] to [B, S, out]."""
        if not _use_convolution(x_BSC):
            return F.linear(x_BSC, self.weight)
        # Reshape to a batch of images one pixel high, in channels-last layout.
        x_NC1W = x_BSC.reshape(_CONVOLUTION_BATCH, 1, -1, x_BSC.shape[-1]).permute(0, 3, 1, 2)
        y_NC1W = F.conv2d(x_NC1W, self.weight[:, :, None, None])
        return y_NC1W.permute(0, 2, 3, 1).reshape(*x_BSC.shape[:-1], -1)


def _use_convolution(x_BSC: Tensor) -> bool:
    rows, width = len(x_BSC) * x_BSC.shape[1], x_BSC.shape[2]
    return (
        x_BSC.device.type == "cpu"
        and x_BSC.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and _ONEDNN
        and rows >= _MIN_ROWS
        and width >= _MIN_WIDTH
        and rows % _CONVOLUTION_BATCH == 0
    )


class PackedLinear(nn.Module):
    """A Linear for inference on a CPU, with its weight packed once into oneDNN's layout.

    For the few rows of a sampling step, where a convolution would be slow. Takes half the time of MKL or less.
    """

    def __init__(self, weight: Tensor, rows: int) -> None:
        super().__init__()
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), rows)

    def forward(self, x_BSC: Tensor) -> Tensor:
        """Map the last dimension; [B, S, in] to [B, S, out]."""
        return torch.ops.mkldnn._linear_pointwise(x_BSC, self._packed, None, "none", [], "")

    @staticmethod
    def suits(weight: Tensor) -> bool:
        """Whether PyTorch supports the packed product for a weight. torch.compile uses it; it is not a public API."""
        return (
            weight.device.type == "cpu"
            and weight.dtype == torch.float32
            and _ONEDNN
            and hasattr(torch.ops.mkldnn, "_linear_pointwise")
            and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        )
