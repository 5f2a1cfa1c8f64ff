"""Random numbers: uniform, independent by seed, purpose and number, and those of splitmix64."""

import torch

from igpt_model.model.randomness import uniform


def test_random_numbers_are_uniform_and_independent() -> None:
    drawn = uniform(3, "test", torch.arange(2000), 50)
    assert drawn.min() >= 0 and drawn.max() < 1
    histogram = torch.histc(drawn, 20, 0, 1) / drawn.numel()
    assert (histogram - 0.05).abs().max() < 0.003
    for pair in (drawn[:, :2].T, torch.stack([drawn[:-1].flatten(), drawn[1:].flatten()])):
        assert abs(float(torch.corrcoef(pair.double())[0, 1])) < 0.06
    assert torch.equal(uniform(3, "test", torch.tensor([77]), 10, first=20)[0], drawn[77, 20:30])
    for other in (uniform(4, "test", torch.arange(2000), 50), uniform(3, "tests", torch.arange(2000), 50)):
        assert (other == drawn).float().mean() < 1e-3


def test_the_reference_numbers_are_those_of_splitmix64() -> None:
    """The mixing is that of splitmix64: from state 0 its first outputs are known."""
    from igpt_model.model.randomness import _GAMMA, _scramble

    states = torch.arange(1, 4) * _GAMMA
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert [value % (1 << 64) for value in _scramble(states).tolist()] == expected
