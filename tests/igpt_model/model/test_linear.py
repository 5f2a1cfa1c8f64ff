"""The fast products on a CPU give what a plain matrix product gives, gradients included."""

import pytest
import torch

from igpt_model.model.linear import Linear, PackedLinear


@pytest.mark.parametrize("shape", [(16, 64, 96), (3, 256, 64), (1, 512, 128), (5, 113, 64), (16, 32, 64)])
def test_products_and_their_gradients_are_the_same_as_convolutions(shape: tuple[int, int, int]) -> None:
    """With 64 or more inputs and 512 rows it is computed as a convolution, otherwise as a matrix product."""
    images, positions, inputs = shape
    generator = torch.Generator().manual_seed(0)
    layer = Linear(inputs, 48)
    torch.nn.init.normal_(layer.weight, generator=generator)
    x = torch.randn(images, positions, inputs, generator=generator, requires_grad=True)
    upstream = torch.randn(images, positions, 48, generator=generator)
    layer(x).backward(upstream)
    assert x.grad is not None and layer.weight.grad is not None
    torch.testing.assert_close(layer(x), x @ layer.weight.T, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(x.grad, upstream @ layer.weight, atol=1e-4, rtol=1e-5)
    expected = upstream.flatten(0, 1).T @ x.detach().flatten(0, 1)
    torch.testing.assert_close(layer.weight.grad, expected, atol=1e-3, rtol=1e-4)


@torch.inference_mode()
def test_packed_matrices_give_the_same_products() -> None:
    weight = torch.randn(96, 64, generator=torch.Generator().manual_seed(0))
    assert PackedLinear.suits(weight), "on this machine the packed product is what draws"
    for rows in (1, 5, 200):
        x = torch.randn(rows, 1, 64, generator=torch.Generator().manual_seed(rows))
        torch.testing.assert_close(PackedLinear(weight, 5)(x), x @ weight.T, atol=1e-4, rtol=1e-5)
