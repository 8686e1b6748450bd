"""FrequencyPrompt: identity at the start, masks and dissimilarities against loops, and what training does to it."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import pywt
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from freekd_mm.compat.versions import zip_equal
from freekd_mm.prompts import FrequencyPrompt, mask_similarity, poi_masks
from freekd_mm.prompts.prompt import INIT_STD


def strong(prompt, std):
    """Gives the tokens another deviation than at the start."""
    prompt.mask_token.data *= std / INIT_STD
    return prompt


@settings(max_examples=30, deadline=None)
@given(
    num_tokens=st.integers(1, 6),
    levels=st.integers(1, 4),
    grouping=st.sampled_from(['level', 'band']),
    height=st.integers(1, 13),
    width=st.integers(1, 13),
)
def test_starts_at_identity_for_every_token_count(num_tokens, levels, grouping, height, width):
    prompt = strong(FrequencyPrompt(4, 'paper', num_tokens, levels, grouping, min_positions=0), 0.5)
    x = torch.randn(2, 4, height, width)
    original = x.clone()
    features, *_ = prompt(x)
    torch.testing.assert_close(features, x, rtol=1e-4, atol=1e-5)
    assert torch.equal(x, original)


@pytest.mark.parametrize('num_tokens', [2, 3, 6])
def test_tokens_start_unequal(num_tokens):
    tokens = FrequencyPrompt(4, num_tokens=num_tokens).mask_token
    for first, second in itertools.combinations(range(num_tokens), 2):
        assert not torch.allclose(tokens[:, first], tokens[:, second])


@pytest.mark.parametrize('grouping', ['level', 'band'])
def test_masks_are_the_sigmoid_of_tokens_times_bands(grouping):
    prompt = strong(FrequencyPrompt(3, 'paper', 2, 2, grouping, min_positions=0), 0.5)
    x = torch.randn(1, 3, 9, 6)
    masks = prompt.masks(x)
    low, coarse, fine = pywt.wavedec2(x[0].numpy(), 'haar', mode='zero', level=2)
    tokens = prompt.mask_token.detach().numpy()

    def naive(group, band):
        out = np.zeros((2, *band.shape[1:]))
        for t, (i, j) in itertools.product(range(2), np.ndindex(*band.shape[1:])):
            out[t, i, j] = 1 / (1 + np.exp(-tokens[group, t] @ band[:, i, j]))
        return out

    np.testing.assert_allclose(masks.low[0].detach().numpy(), naive(0, low), rtol=1e-4)
    for level, bands in enumerate((fine, coarse)):
        for index, band in enumerate(bands):
            group, source = (1 + level, sum(bands)) if grouping == 'level' else (1 + 3 * level + index, band)
            got = masks.high[level][index][0].detach().numpy()
            np.testing.assert_allclose(got, naive(group, source), rtol=1e-4, atol=1e-6)


def test_reconstruction_weighs_every_band_with_the_sum_of_its_masks():
    prompt = strong(FrequencyPrompt(3, 'paper', 3, 2, min_positions=0), 0.5)
    torch.nn.init.normal_(prompt.mask_token)
    x = torch.randn(1, 3, 8, 6)
    masks = prompt.masks(x)
    low, *coarse_first = pywt.wavedec2(x[0].numpy(), 'haar', mode='zero', level=2)
    weight = lambda mask: 2 / 3 * mask[0].sum(0).detach().numpy()  # noqa: E731
    bands = [low * weight(masks.low)]
    for detail, of_level in zip_equal(coarse_first, reversed(masks.high)):
        bands.append(tuple(band * weight(mask) for band, mask in zip_equal(detail, of_level)))
    wanted = pywt.waverec2(bands, 'haar', mode='zero')
    np.testing.assert_allclose(prompt(x)[0][0].detach().numpy(), wanted, rtol=1e-4, atol=1e-5)


def naive_similarity(masks, kind):
    batch, count = masks.shape[:2]
    total = 0.0
    for n in range(batch):
        for i, j in itertools.product(range(count), repeat=2):
            a, b = masks[n, i].flatten(), masks[n, j].flatten()
            both = sum(x * y for x, y in zip_equal(a, b))
            squares = sum(x * x for x in a) + sum(y * y for y in b)
            if kind == 'jaccard':
                total += both / (squares - both) / count**2
            elif i != j:
                total += 2 * both / squares / (count * (count - 1))
    return total / batch


def test_a_small_map_has_fewer_levels_and_the_tokens_of_the_others_wait():
    prompt = strong(FrequencyPrompt(3), 0.5)
    x = torch.randn(1, 3, 8, 10)
    features, overlap, masks = prompt(x)
    assert [tuple(detail.vertical.shape) for detail in masks.high] == [(1, 2, 4, 5)]
    torch.testing.assert_close(features, x, rtol=1e-4, atol=1e-5)
    overlap.backward()
    assert prompt.mask_token.grad[:4].abs().sum(-1).min() > 0
    assert not prompt.mask_token.grad[4:].any()


@pytest.mark.parametrize('kind', ['jaccard', 'dice'])
@pytest.mark.parametrize('count', [1, 2, 3])
def test_dissimilarity_equals_a_loop_over_the_pairs(kind, count):
    masks = torch.rand(2, count, 3, 4, dtype=torch.float64)
    assert mask_similarity(masks, kind).item() == pytest.approx(naive_similarity(masks.numpy(), kind), rel=1e-9)


def test_dissimilarity_of_binary_masks_is_the_index_of_sets():
    masks = torch.tensor([[[1.0, 1.0, 0.0, 0.0], [0.0, 1.0, 1.0, 0.0]]]).reshape(1, 2, 2, 2)
    # One of three elements is in both; the paper's sum also holds the two pairs i = j.
    assert mask_similarity(masks, 'jaccard').item() == pytest.approx((2 + 2 / 3) / 4)
    assert mask_similarity(masks, 'dice').item() == pytest.approx(0.5)


@pytest.mark.parametrize('kind', ['jaccard', 'dice'])
@pytest.mark.parametrize('num_tokens', [2, 3])
def test_masks_part_under_the_dissimilarity_alone(kind, num_tokens):
    torch.manual_seed(0)
    prompt = FrequencyPrompt(8, {'jaccard': 'paper', 'dice': 'code'}[kind], num_tokens, 2, 'level')
    x = torch.randn(2, 8, 16, 16)
    start = prompt(x)[1].item()
    optimizer = torch.optim.Adam(prompt.parameters(), lr=0.05)
    for _ in range(60):
        _, overlap, _ = prompt(x)
        optimizer.zero_grad()
        overlap.backward()
        optimizer.step()
    least = 3 / num_tokens if kind == 'jaccard' else 0.0  # of the low band and two levels
    assert overlap.item() - least < 0.5 * (start - least)
    for mask in (prompt.masks(x).low, prompt.masks(x).high[0].vertical):
        for first, second in itertools.combinations(range(num_tokens), 2):
            assert (mask[:, first] - mask[:, second]).abs().mean() > 0.3


def test_gradients_agree_with_finite_differences():
    prompt = strong(FrequencyPrompt(2, 'paper', 3, 2, min_positions=0), 0.5).double()
    x = torch.randn(1, 2, 5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, _: prompt(x)[:2], (x, prompt.mask_token))


def test_half_precision_keeps_its_dtype_and_comes_close():
    prompt = strong(FrequencyPrompt(4, min_positions=0), 0.3)
    torch.nn.init.normal_(prompt.mask_token, std=0.3)
    x = torch.randn(1, 4, 8, 8)
    wanted, overlap, _ = prompt(x)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        features, other, _ = prompt(x.bfloat16())
    assert features.dtype == torch.bfloat16
    torch.testing.assert_close(features.float(), wanted, rtol=0.05, atol=0.05)
    torch.testing.assert_close(other, overlap, rtol=1e-2, atol=0)


def test_copies_and_state_dicts_keep_the_tokens():
    prompt = FrequencyPrompt(4, num_tokens=3)
    assert prompt.mask_token.shape == (10, 3, 4)
    other = FrequencyPrompt(4, num_tokens=3)
    other.load_state_dict(copy.deepcopy(prompt).state_dict())
    assert torch.equal(other.mask_token, prompt.mask_token)


def test_an_empty_batch_works():
    features, overlap, _ = FrequencyPrompt(4, min_positions=0)(torch.zeros(0, 4, 8, 8))
    assert features.shape == (0, 4, 8, 8)
    assert overlap == 0


@pytest.mark.parametrize(
    ('options', 'error', 'message'),
    [
        (dict(channels=0), ValueError, 'channels should be greater than 0'),
        (dict(num_tokens=0), ValueError, 'num_tokens should be greater than 0'),
        (dict(levels='3'), TypeError, 'levels should be an integer'),
        (dict(grouping='levels'), ValueError, "grouping should be one of 'level', 'band'.* mean 'level'"),
    ],
)
def test_wrong_options_name_what_is_available(options, error, message):
    with pytest.raises(error, match=message):
        FrequencyPrompt(**{'channels': 4, **options})


def test_features_of_other_channels_are_refused():
    with pytest.raises(ValueError, match=r'features should be \(N, 4, H, W\).*but got \(1, 3, 5, 5\)'):
        poi_masks(torch.zeros(1, 3, 5, 5), torch.zeros(4, 2, 4))
