"""Counter-based random numbers: a pure function of the seed, the purpose and a counter, computed on the device.

The mask and augmentation of a training sample depend only on the seed and its position in the sample order; a sampled
pixel depends only on the seed, the image number and its position. The number of workers, the batch size and earlier
draws do not matter, and there is no generator state to save.

The function is splitmix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators"), with one
stream per number.
"""

import hashlib

import torch
from torch import Tensor

# Constants of splitmix64 as signed 64-bit integers, since tensors have no uint64 arithmetic; products wrap around.
_GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)
_MULTIPLIERS = (0xBF58476D1CE4E5B9 - (1 << 64), 0x94D049BB133111EB - (1 << 64))
_BITS = 24  # the precision of a float32


def uniform(seed: int, purpose: str, numbers_N: Tensor, count: int, *, first: int = 0) -> Tensor:
    """Values `first` to `first + count` of the stream of each number, in [0, 1); int64 [N] to float32 [N, count].

    Streams with a different seed or purpose are independent.
    """
    seed_hash = hashlib.sha256(f"{seed} {purpose}".encode()).digest()
    key = int.from_bytes(seed_hash[:8], "little", signed=True)
    starts_N1 = _scramble(numbers_N[:, None] * _GAMMA + key)
    steps = torch.arange(first + 1, first + count + 1, device=numbers_N.device) * _GAMMA
    bits = _shift_right(_scramble(starts_N1 + steps), 64 - _BITS)
    return bits.to(torch.float32) * 2.0**-_BITS


def _scramble(x: Tensor) -> Tensor:
    x = (x ^ _shift_right(x, 30)) * _MULTIPLIERS[0]
    x = (x ^ _shift_right(x, 27)) * _MULTIPLIERS[1]
    return x ^ _shift_right(x, 31)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical right shift: fills with zeros, where `>>` on tensors fills with the sign bit."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
