"""Matrix products without bias, and the fastest exact way to compute them on a CPU.

For a float32 product PyTorch calls MKL, which uses half of the vector width of processors that are not Intel's. oneDNN
uses all of it, and PyTorch calls oneDNN for convolutions: a 1x1 convolution is the same product, gradients included.
(Measured on two cores of an AMD EPYC with AVX-512: 206 GFLOP/s as a product, 410 as a convolution.)
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_FEWEST_ROWS, _LEAST_WIDTH = 512, 64  # below, preparing the convolution costs more than it saves
_ONEDNN = torch.backends.mkldnn.is_available()
_PICTURES = 16  # with fewer on one thread, PyTorch does not give a 1x1 convolution to oneDNN


class Linear(nn.Module):
    """x @ weight.T with weight [out, in]."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))

    def forward(self, x_BSC: Tensor) -> Tensor:
        """Map the last dimension; [B, S, in] to [B, S, out]."""
        if not _as_convolution(x_BSC):
            return F.linear(x_BSC, self.weight)
        # As pictures one pixel high, in the layout that oneDNN calls channels last.
        x_NC1W = x_BSC.reshape(_PICTURES, 1, -1, x_BSC.shape[-1]).permute(0, 3, 1, 2)
        y_NC1W = F.conv2d(x_NC1W, self.weight[:, :, None, None])
        return y_NC1W.permute(0, 2, 3, 1).reshape(*x_BSC.shape[:-1], -1)


def _as_convolution(x_BSC: Tensor) -> bool:
    rows, width = len(x_BSC) * x_BSC.shape[1], x_BSC.shape[2]
    return (
        x_BSC.device.type == "cpu"
        and x_BSC.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and _ONEDNN
        and rows >= _FEWEST_ROWS
        and width >= _LEAST_WIDTH
        and rows % _PICTURES == 0
    )


class PackedLinear(nn.Module):
    """A Linear for inference on a CPU, its weight laid out once as oneDNN's kernels read it.

    For the few rows of a drawing step, where a convolution would be slow: half the time of MKL's product, or less.
    """

    def __init__(self, weight: Tensor, rows: int) -> None:
        super().__init__()
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), rows)

    def forward(self, x_BSC: Tensor) -> Tensor:
        """Map the last dimension; [B, S, in] to [B, S, out]."""
        return torch.ops.mkldnn._linear_pointwise(x_BSC, self._packed, None, "none", [], "")

    @staticmethod
    def suits(weight: Tensor) -> bool:
        """Whether this PyTorch has the packed product for such a weight. It is what torch.compile calls, not public."""
        return (
            weight.device.type == "cpu"
            and weight.dtype == torch.float32
            and _ONEDNN
            and hasattr(torch.ops.mkldnn, "_linear_pointwise")
            and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        )
