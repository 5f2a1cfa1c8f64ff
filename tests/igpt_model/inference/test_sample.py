"""Sampling and scoring: independent of the batch size, known pixels are kept, and samples follow the model."""

import math

import numpy as np
import pytest
import torch

from igpt_model.inference.sample import Drawing, complete, draw, images_at_once
from igpt_model.model.linear import PackedLinear
from igpt_model.model.network import Condition, ImageGPT, KeyValueCache
from pipeline.errors import IgptError
from tests.igpt_model.model.test_network import BY_CLASS, MASKED, SMALL, UPSCALING, make, some_tokens


@pytest.fixture
def model() -> ImageGPT:
    return make(SMALL)


def first_pixels(count: int) -> torch.Tensor:
    """Which pixels are known when the first `count` are, for five images."""
    return (torch.arange(16) < count).expand(5, 16)


def test_completions_keep_what_was_given_and_repeat_with_the_seed(model: ImageGPT) -> None:
    tokens = some_tokens()
    first = complete(model, tokens, first_pixels(9), Drawing(seed=3))
    assert torch.equal(first[:, :9], tokens[:, :9])
    assert torch.equal(first, complete(model, tokens, first_pixels(9), Drawing(seed=3)))
    assert not torch.equal(first, complete(model, tokens, first_pixels(9), Drawing(seed=4)))
    assert torch.equal(complete(model, tokens, first_pixels(16)), tokens)


@pytest.mark.parametrize("count", [0, 1, 9, 15])
def test_a_completion_depends_on_nothing_that_is_to_be_drawn(model: ImageGPT, count: int) -> None:
    tokens, known = some_tokens(), first_pixels(count)
    other = torch.where(known, tokens, (tokens + 5) % 11)
    assert torch.equal(complete(model, tokens, known), complete(model, other, known))


def test_any_mask_is_kept_and_rows_may_differ(model: ImageGPT) -> None:
    tokens = some_tokens()
    known = torch.rand(5, 16, generator=torch.Generator().manual_seed(0)) < 0.5
    drawn = complete(model, tokens, known)
    assert torch.equal(drawn[known], tokens[known])
    # One image at a time gives the same as all at once, and a known pixel influences those after it.
    for row in range(5):
        rows = slice(row, row + 1)
        alone = complete(model, tokens[: row + 1], known[: row + 1])
        assert torch.equal(alone[rows], drawn[rows])
    known = torch.ones(1, 16, dtype=torch.bool)
    known[0, 9] = False
    cold = complete(model, tokens[:1], known, Drawing(temperature=0))
    assert cold[0, 9] == model(tokens[:1])[0, 9].argmax()


@pytest.mark.parametrize("images_at_once", [5, 2])
def test_a_watch_sees_each_pixel_once_it_is_final(model: ImageGPT, images_at_once: int) -> None:
    """Also of images that are drawn one batch after another, and not before."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    bytes_ = images_at_once * KeyValueCache.bytes_per_image(model.config, torch.float32)
    drawn = complete(
        model,
        some_tokens(),
        first_pixels(9),
        cache_bytes=bytes_,
        watch=lambda tokens, done: seen.append((tokens.clone(), done.clone())),
    )
    assert torch.equal(drawn, complete(model, some_tokens(), first_pixels(9)))
    for tokens, done in seen:
        final = torch.arange(16) < done[:, None]
        assert torch.equal(tokens[final], drawn[final])
    of_last = [done[-1].item() for _, done in seen if done[-1]]
    assert of_last == [10, 11, 12, 13, 14, 15, 16, 16]
    assert seen[-1][1].tolist() == [16] * 5

    def give_up(tokens: torch.Tensor, done: torch.Tensor) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        complete(model, some_tokens(), first_pixels(9), watch=give_up)


@pytest.mark.parametrize("config", [SMALL, BY_CLASS, UPSCALING])
@torch.inference_mode()
def test_the_images_do_not_depend_on_how_the_batch_is_split(config: object) -> None:
    assert isinstance(config, type(SMALL))
    model = make(config)
    condition = Condition(
        labels_B=torch.arange(7) % 5 if config.classes else None,
        low_BP=some_tokens(7, 4) if config.low_resolution else None,
    )
    one = KeyValueCache.bytes_per_image(config, torch.float32)
    whole = draw(model, 7, Drawing(seed=5), condition=condition)
    for images in (1, 2, 3, 7):
        assert images_at_once(model, images * one) == images
        assert torch.equal(draw(model, 7, Drawing(seed=5), condition=condition, cache_bytes=images * one), whole)
    assert images_at_once(model, 1) == 1
    # Images do not influence each other: neither their number nor the conditions of others matter.
    rows = slice(0, 3)
    assert torch.equal(draw(model, 3, Drawing(seed=5), condition=condition.rows(rows)), whole[:3])


@pytest.mark.parametrize("config", [SMALL, BY_CLASS, UPSCALING])
@pytest.mark.parametrize("draws", [1, 3])
def test_a_completion_depends_on_its_image_and_draw_and_not_on_its_place(draws: int, config: object) -> None:
    assert isinstance(config, type(SMALL))
    model, count = make(config), 5
    images = some_tokens(count)

    def completions(order: list[int], **limits: int) -> torch.Tensor:
        """Completions of the images of these numbers, [len(order), draws, T]."""
        numbers = torch.tensor(order).repeat_interleave(draws)
        condition = Condition(
            labels_B=numbers if config.classes else None,
            low_BP=some_tokens(count, 4)[numbers] if config.low_resolution else None,
        )
        known = first_pixels(6)[:1].expand(len(numbers), 16)
        drawn = complete(model, images[numbers], known, Drawing(seed=3), condition=condition, draws=draws, **limits)
        return drawn.reshape(len(order), draws, -1)

    together = completions([0, 1, 2, 3, 4])
    assert torch.equal(completions([4, 2, 0, 2]), together[[4, 2, 0, 2]])
    assert torch.equal(completions([3]), together[3:4])
    assert torch.equal(completions([0, 1, 2, 3, 4], cache_bytes=1), together), "an image at a time"
    if draws > 1:
        assert not torch.equal(together[0, 0], together[0, 1])


def test_completions_of_one_image_are_those_of_before(model: ImageGPT) -> None:
    """Without `draws` every row draws its own numbers, as the only image of a request always did."""
    tokens, known = some_tokens(1).expand(4, 16), first_pixels(6)[:4]
    assert torch.equal(complete(model, tokens, known, draws=4), complete(model, tokens, known))


@torch.inference_mode()
def test_a_cold_draw_takes_the_likeliest_colour(model: ImageGPT) -> None:
    drawn = draw(model, 2, Drawing(temperature=0))
    assert torch.equal(model(drawn).argmax(2), drawn)
    for cold in (Drawing(temperature=1e-6), Drawing(top_k=1, seed=9), Drawing(top_p=1e-9, seed=9)):
        assert torch.equal(draw(model, 2, cold), drawn)


@torch.inference_mode()
def test_drawn_pixels_follow_the_models_distribution(model: ImageGPT) -> None:
    logits = model(some_tokens(1))[0, 0]

    def frequencies_of(drawing: Drawing) -> torch.Tensor:
        drawn = draw(model, 4000, drawing)
        return torch.bincount(drawn[:, 0], minlength=11) / 4000

    ranked = logits.argsort(descending=True)
    expected = logits.softmax(0)
    assert (frequencies_of(Drawing(seed=5)) - expected).abs().max() < 0.03
    assert (frequencies_of(Drawing(seed=5, temperature=0.5)) - (2 * logits).softmax(0)).abs().max() < 0.03
    for drawing, kept in (
        (Drawing(top_k=3), 3),
        (Drawing(top_p=float(expected[ranked[:4]].sum()) - 1e-3), 4),
        (Drawing(top_k=5, top_p=0.999999), 5),
    ):
        cut = torch.zeros(11)
        cut[ranked[:kept]] = expected[ranked[:kept]]
        frequencies = frequencies_of(drawing)
        assert not frequencies[cut == 0].any()
        assert (frequencies - cut / cut.sum()).abs().max() < 0.03


@torch.inference_mode()
def test_neighbouring_pixels_are_drawn_independently(model: ImageGPT) -> None:
    """With constant logits, sampled pixels must be independent and identically distributed."""
    blind = make(SMALL)
    blind.head.weight.zero_()
    assert len(draw(blind, 300, Drawing(top_k=2, seed=1)).unique()) <= 2, "equally likely colours beyond the second"
    drawn = draw(blind, 3000, Drawing(seed=1)).double()
    assert (drawn.mean(0) - 5).abs().max() < 0.35
    correlations = np.corrcoef(drawn.numpy().T) - np.eye(16)
    assert np.abs(correlations).max() < 0.09


def test_images_are_drawn_alike_where_there_are_no_packed_matrices(
    model: ImageGPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = draw(model, 3)
    monkeypatch.setattr(PackedLinear, "suits", staticmethod(lambda weight: False))
    assert torch.equal(draw(model, 3), packed)
    halved = draw(model.bfloat16(), 3)
    assert (halved == packed).float().mean() > 0.5


def test_what_cannot_be_drawn_is_refused(model: ImageGPT) -> None:
    with pytest.raises(IgptError, match="masked model cannot draw"):
        draw(make(MASKED), 1)
    for fields in ({"temperature": -1.0}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.5}, {"temperature": math.nan}):
        with pytest.raises(IgptError, match=next(iter(fields))):
            Drawing(**fields)  # type: ignore[arg-type]
