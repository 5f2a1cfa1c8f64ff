"""Muon: what it makes of matrices, and its steps; test_sharing.py and test_parallel.py have several workers."""

import pytest
import torch

from igpt_model.config import PretrainConfig
from igpt_model.training import muon
from igpt_model.training.muon import orthogonal
from igpt_model.training.optim import make_optimizer
from igpt_model.worker import Worker
from tests.igpt_model.model.test_network import SMALL, make


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 64, 16), (1, 16, 64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_orthogonal_keeps_the_singular_vectors_and_levels_the_values(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    given = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 1e-4
    left, _, right = torch.linalg.svd(given.double(), full_matrices=False)
    made = orthogonal(given.to(dtype)).double()
    inner = left.mT @ made @ right.mT
    values = torch.diagonal(inner, dim1=1, dim2=2)
    assert values.min() > 0.6 and values.max() < 1.3
    assert (inner - torch.diag_embed(values)).abs().max() < (0.1 if dtype == torch.bfloat16 else 1e-3)
    assert torch.equal(orthogonal(torch.zeros(shape)), torch.zeros(shape))


def test_the_matrices_that_a_weight_consists_of_are_made_orthogonal_on_their_own() -> None:
    given = torch.randn(2, 3 * 16, 16, generator=torch.Generator().manual_seed(0))
    apart = torch.stack([torch.cat([orthogonal(part[None])[0] for part in whole.chunk(3)]) for whole in given])
    torch.testing.assert_close(orthogonal(given, 3), apart)


def test_a_step_of_muon_is_that_of_pytorch_scaled_to_adam() -> None:
    """Of PyTorch's Muon, which computes in bfloat16 and one matrix after the other."""
    model, expected = make(SMALL), make(SMALL)
    config = PretrainConfig.from_fields(runs="r", preset="tiny", optim="muon", weight_decay=0.1, learning_rate=0.01)
    optimizer = make_optimizer(model, config, Worker())
    names = [name for name, p in model.named_parameters() if name.startswith("blocks.") and p.ndim == 2]
    weights = [expected.get_parameter(name) for name in names if not name.endswith("qkv.weight")]
    peer = torch.optim.Muon(weights, lr=0.01, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        for name, parameter in model.named_parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
            expected.get_parameter(name).grad = parameter.grad.clone()
        optimizer.step()
        peer.step()
    start = make(SMALL)
    for name in names:
        if not name.endswith("qkv.weight"):
            moved = (expected.get_parameter(name) - start.get_parameter(name)).norm()
            assert (model.get_parameter(name) - expected.get_parameter(name)).norm() < 0.02 * moved


def test_rounds_do_not_change_what_is_learnt(monkeypatch: pytest.MonkeyPatch) -> None:
    config = PretrainConfig.from_fields(runs="r", preset="tiny", optim="muon", learning_rate=0.01)
    results = []
    for most in (muon._ROUND, 1):
        monkeypatch.setattr(muon, "_ROUND", most)
        model, generator = make(SMALL), torch.Generator().manual_seed(0)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        make_optimizer(model, config, Worker()).step()
        results.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    torch.testing.assert_close(results[0], results[1], atol=1e-5, rtol=0)
