"""Random numbers as a pure function of what they are for, made on the device that needs them.

A training sample's mask and augmentation depend on the seed and on its place in the endless order alone, a drawn
pixel on the seed, its image's number and its position: not on the number of workers, the split of a batch, or what
was drawn before. So there is no generator whose state must be kept.

The function is splitmix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators"), one stream
a number.
"""

import hashlib

import torch
from torch import Tensor

# Odd constants of splitmix64, as the signed integers that tensors hold; products wrap around at 64 bits.
_GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)
_MULTIPLIERS = (0xBF58476D1CE4E5B9 - (1 << 64), 0x94D049BB133111EB - (1 << 64))
_BITS = 24  # as many as a float32 has


def uniform(seed: int, purpose: str, numbers_N: Tensor, count: int, *, first: int = 0) -> Tensor:
    """Values `first` to `first` + `count` of the streams of some numbers, in [0, 1); int64 [N] to float32 [N, count].

    Streams of another seed or purpose are independent.
    """
    text = hashlib.sha256(f"{seed} {purpose}".encode()).digest()
    key = int.from_bytes(text[:8], "little", signed=True)
    starts_N1 = _scramble(numbers_N[:, None] * _GAMMA + key)
    steps = torch.arange(first + 1, first + count + 1, device=numbers_N.device) * _GAMMA
    bits = _shift_right(_scramble(starts_N1 + steps), 64 - _BITS)
    return bits.to(torch.float32) * 2.0**-_BITS


def _scramble(x: Tensor) -> Tensor:
    x = (x ^ _shift_right(x, 30)) * _MULTIPLIERS[0]
    x = (x ^ _shift_right(x, 27)) * _MULTIPLIERS[1]
    return x ^ _shift_right(x, 31)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Shift zeros in from the left, where tensors would shift in the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
