"""A prompt that selects: masks of magnitudes with an area of their own, and what the paper's prompt cannot do."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from freekd_mm.compat.versions import zip_equal
from freekd_mm.frequency import WaveletBands, dwt2d
from freekd_mm.prompts import FrequencyPrompt, PoIMaskGenerator, PromptFile, poi_masks, save_prompt
from freekd_mm.prompts.masks import mask_groups


def selective(channels: int = 4, **options: object) -> FrequencyPrompt:
    torch.manual_seed(0)
    return FrequencyPrompt(channels, 'selective', **options)  # type: ignore[arg-type]


def groups(prompt: FrequencyPrompt, features: Tensor) -> list[Tensor]:
    return [mask.detach() for mask in mask_groups(prompt.masks(features), prompt.grouping)]


@pytest.mark.parametrize('grouping', ['level', 'band'])
def test_each_mask_has_its_area_and_the_low_band_stays_whole(grouping: str) -> None:
    prompt = selective(area=0.35, grouping=grouping)
    low, *high = groups(prompt, 7 + 3 * torch.randn(4, 4, 64, 64))
    torch.testing.assert_close(low, torch.ones_like(low))
    assert len(high) == (3 if grouping == 'level' else 9)
    for mask in high:
        assert mask.mean() == pytest.approx(0.35, abs=0.05)
        assert mask.std() > 0.2


def logits_of(prompt: FrequencyPrompt, bands: WaveletBands, group: int) -> Tensor:
    """What the tokens of a group find, position by position, (N, T, h, w)."""
    high = [[*detail] for detail in bands.high]
    if prompt.grouping == 'band':
        high = [[band] for detail in high for band in detail]
    size = torch.stack([[bands.low], *high][group]).abs().sum(0)
    found = torch.einsum('tc,nchw->nthw', prompt.mask_token[group].detach(), size)
    wanted = torch.empty_like(found)
    for i, j in np.ndindex(*found.shape[2:]):
        around = found[..., max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2].mean((2, 3))
        wanted[..., i, j] = (found[..., i, j] + around) / 2
    return wanted


@pytest.mark.parametrize('grouping', ['level', 'band'])
def test_masks_and_features_are_those_of_the_formula(grouping: str) -> None:
    prompt = selective(num_tokens=3, levels=2, grouping=grouping, area=0.2, sharpness=2)
    nn.init.normal_(prompt.mask_token)
    features = 5 + torch.randn(2, 4, 20, 16)
    changed, _, masks = prompt(features)
    assert masks is not None
    bands, got = dwt2d(features, 2), dwt2d(changed.detach(), 2)
    torch.testing.assert_close(got.low, bands.low)
    own = [band for detail in bands.high for band in detail]
    beta = math.log(0.2 / 0.8) * math.sqrt(1 + math.pi * 2**2 / 8)
    for index, (mask, band) in enumerate(
        zip_equal(*([band for detail in of.high for band in detail] for of in (masks, got)))
    ):
        z = logits_of(prompt, bands, 1 + (index // 3 if grouping == 'level' else index))
        mean, std = z.mean((0, 2, 3), keepdim=True), z.std((0, 2, 3), unbiased=False, keepdim=True)
        wanted = torch.sigmoid(2 * (z - mean) / std + beta)
        torch.testing.assert_close(mask.detach(), wanted, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(band, own[index] * wanted.sum(1, keepdim=True) / 3, rtol=1e-4, atol=1e-5)


def test_eval_mode_takes_the_running_statistics() -> None:
    """The first batch is taken whole, a tenth of each further one."""
    prompt = selective(levels=1)
    first, second, features = torch.randn(2, 4, 16, 16), 3 * torch.randn(2, 4, 12, 16), torch.randn(1, 4, 16, 16)
    mean, var = torch.zeros(2, 2), torch.zeros(2, 2)
    for batch, rate in ((first, 1.0), (second, 0.1)):
        prompt(batch)
        for group in (0, 1):
            z = logits_of(prompt, dwt2d(batch, 1), group)
            mean[group] += rate * (z.mean((0, 2, 3)) - mean[group])
            var[group] += rate * (z.var((0, 2, 3), unbiased=False) - var[group])
    torch.testing.assert_close(prompt.mean, mean)
    torch.testing.assert_close(prompt.var, var)
    prompt.eval()
    z = logits_of(prompt, dwt2d(features, 1), 1)
    standard = (z - mean[1][:, None, None]) / var[1][:, None, None].sqrt()
    beta = math.log(0.35 / 0.65) * math.sqrt(1 + math.pi * 4**2 / 8)
    torch.testing.assert_close(groups(prompt, features)[1], torch.sigmoid(4 * standard + beta), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(prompt.mean, mean, msg='an evaluation changes none')


def test_an_area_for_each_group_and_one_of_the_low_band() -> None:
    prompt = selective(area=(0.5, 0.2, 0.5, 1))
    means = [float(mask.mean()) for mask in groups(prompt, torch.randn(4, 4, 128, 128))]
    assert means == pytest.approx([0.5, 0.2, 0.5, 1.0], abs=0.05)


def test_masks_are_the_same_for_both_signs_and_all_scales() -> None:
    prompt, features = selective(), torch.randn(2, 4, 32, 32)
    for mask, of_minus, of_many in zip_equal(*(groups(prompt, scale * features) for scale in (1, -1, 50))):
        torch.testing.assert_close(mask, of_minus)
        torch.testing.assert_close(mask, of_many, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('grouping', ['level', 'band'])
def test_the_edge_between_the_features_and_the_zeros_beyond_them_is_not_seen(grouping: str) -> None:
    """At the border the masks are as beside it; their statistics are of whole blocks."""
    features = torch.randn(2, 4, 25, 43)
    prompt, same = (selective(grouping=grouping) for _ in range(2))
    low, *high = groups(prompt, features)
    _, *others = groups(same, features + 100)
    shapes = [(4, 6), *((h, w) for h, w in ((13, 22), (7, 11), (4, 6)) for _ in range(1 if grouping == 'level' else 3))]
    assert [mask.shape[2:] for mask in (low, *high)] == shapes
    for level, mask in zip_equal([1, 2, 3] if grouping == 'level' else [1, 1, 1, 2, 2, 2, 3, 3, 3], high):
        rows, columns = 25 >> level, 43 >> level
        torch.testing.assert_close(mask[:, :, rows:, :columns], mask[:, :, rows - 1 : rows, :columns])
        torch.testing.assert_close(mask[:, :, :, columns:], mask[:, :, :, columns - 1 : columns])
        assert mask[:, :, :rows, :columns].mean() == pytest.approx(0.35, abs=0.1)
    for mask, other in zip_equal(high, others):
        torch.testing.assert_close(mask, other, rtol=1e-2, atol=1e-2)
    for name in ('mean', 'var'):
        torch.testing.assert_close(getattr(prompt, name)[1:], getattr(same, name)[1:], rtol=1e-2, atol=1e-4)


def test_a_map_without_a_whole_block_and_another_dtype_have_masks() -> None:
    prompt = selective(levels=2, min_positions=0)
    shapes = [detail.vertical.shape[2:] for detail in prompt.masks(torch.randn(2, 4, 1, 9)).high]
    assert shapes == [(1, 5), (1, 3)]
    assert selective().masks(torch.randn(2, 4, 3, 3)).low.shape == (2, 2, 2, 2)
    changed, _, _ = prompt(torch.randn(2, 4, 16, 16, dtype=torch.float64))
    assert changed.dtype == torch.float64


def test_a_prompt_that_is_folded_into_tokens_and_bias_gives_the_masks_of_eval_mode(tmp_path) -> None:
    prompt = selective(num_tokens=3)
    for _ in range(30):
        prompt(torch.randn(4, 4, 32, 32))
    prompt.eval()
    tokens, bias = prompt.folded()
    features = torch.randn(2, 4, 32, 32)
    folded = poi_masks(features, tokens, 3, 'level', 'magnitude', bias)
    file = PromptFile({'neck[0]': tokens}, num_tokens=3, evidence='magnitude', bias={'neck[0]': bias})
    generator = PoIMaskGenerator(4, prompt=str(save_prompt(file, tmp_path / 'prompt.pth')))
    (of_file,) = generator([features])
    assert of_file is not None
    for wanted, *got in zip_equal(
        *(mask_groups(masks, 'level') for masks in (prompt.masks(features), folded, of_file))
    ):
        for mask in got:
            torch.testing.assert_close(mask, wanted, rtol=1e-4, atol=1e-5)


def test_only_as_deep_as_a_band_has_16_positions_and_what_was_never_seen_stays_whole() -> None:
    prompt = selective()
    features, _, masks = prompt(torch.randn(2, 4, 8, 10))
    assert masks is not None
    assert [detail.vertical.shape[-2:] for detail in masks.high] == [(4, 5)]
    prompt.eval()
    low, fine, *deep = groups(prompt, torch.randn(1, 4, 64, 64))
    assert fine.std() > 0.1
    for mask in (low, *deep):
        torch.testing.assert_close(mask, torch.ones_like(mask))
    small = torch.randn(2, 4, 3, 5, requires_grad=True)
    unchanged, overlap, none = prompt(small)
    assert none is None
    assert torch.equal(unchanged, small)
    overlap.backward()
    assert torch.equal(prompt.mask_token.grad, torch.zeros_like(prompt.mask_token)), 'DDP waits for every parameter'
    assert features.shape == (2, 4, 8, 10)


def test_gradients_agree_with_finite_differences() -> None:
    prompt = selective(2, min_positions=0).double()
    prompt.eval()
    prompt.var.fill_(0.5)
    x = torch.randn(1, 2, 6, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, _: prompt(x)[0], (x, prompt.mask_token))


def scenes(count: int) -> tuple[Tensor, Tensor]:
    """Returns maps with squares on noise, (N, 8, 32, 32), and where the squares' borders are, (N, 1, 32, 32)."""
    generator = torch.Generator().manual_seed(1)
    maps, borders = 0.2 * torch.randn(count, 8, 32, 32, generator=generator), torch.zeros(count, 1, 32, 32)
    for index in range(count):
        top, left, height, width = (int(torch.randint(3, 14, (1,), generator=generator)) for _ in range(4))
        maps[index, :, top : top + height, left : left + width] += torch.randn(8, 1, 1, generator=generator)
        borders[index, 0, top : top + height, left : left + width] = 1
        borders[index, 0, top + 1 : top + height - 1, left + 1 : left + width - 1] = 0
    return maps, borders


@pytest.mark.parametrize('mode', ['paper', 'selective'])
def test_the_weight_of_the_papers_prompt_is_flat_and_that_of_ours_looks_at_edges(mode: str) -> None:
    """Both are trained to keep what a frozen head says; the tokens of the paper's are alive all the same."""
    torch.manual_seed(0)
    maps, borders = scenes(16)
    head = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 4, 1)).requires_grad_(False)
    prompt = FrequencyPrompt(8, mode)  # type: ignore[arg-type]
    optimizer = torch.optim.Adam(prompt.parameters(), lr=0.02)
    for _ in range(60):
        features, overlap, _ = prompt(maps)
        loss = (head(features) - head(maps)).square().mean() + (0.1 * overlap if mode == 'paper' else 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    _, fine, *_ = groups(prompt.eval(), maps)
    weight = fine.sum(1, keepdim=True)
    there = nn.functional.adaptive_avg_pool2d(borders, (16, 16)) > 0
    ratio = float(weight[there].mean() / weight[~there].mean())
    if mode == 'paper':
        assert fine.std() > 0.1, 'the masks themselves are not flat'
        assert weight.std() < 0.1 * weight.mean()
        assert ratio == pytest.approx(1, abs=0.1)
    else:
        assert weight.std() > 0.3 * weight.mean()
        assert ratio > 1.5


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(mode='selektive'), "mode of the prompt should be one of .* mean 'selective'"),
        (dict(area=0), 'area should be greater than 0'),
        (dict(area=1.5), 'area should be a number up to 1 or 4 of them'),
        (dict(area=(1, 0.5)), r'area should be a number up to 1 or 4 of them, one for each group, but got \(1, 0.5\)'),
        (dict(mode='paper', area=0.5), "area and sharpness should be left out unless mode='selective'"),
        (dict(sharpness=0), 'sharpness should be greater than 0'),
    ],
)
def test_wrong_options_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FrequencyPrompt(4, **{'mode': 'selective', **options})
