"""Bands and pictures: the right values, in the right places, and no trace of looking."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import tiny_configs
import torch
from distill_cases import build, distilled, save_weights
from mmengine.config import Config
from picture_cases import LEVELS, STUDENT, TEACHER, entry

from freekd_mm.compat.versions import zip_equal
from freekd_mm.frequency import dwt2d
from freekd_mm.losses import FreeKDLoss, WaveletLoss
from freekd_mm.pictures import GAP, SIDE, TITLE, Tile, grid, mask_pictures, mask_tiles
from freekd_mm.prompts.masks import named_groups
from freekd_mm.runtime.preprocess import as_rgb
from freekd_mm.visualize.draw import overviews, pyramid, visualize
from freekd_mm.visualize.features import Seen, View, band_maps, compared_by, look


def noise(channels: int = 4, size: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(seed))


def test_the_maps_are_the_mean_distance_of_each_band() -> None:
    student, teacher = noise(seed=1), noise(seed=2)
    maps = band_maps(student, teacher, FreeKDLoss(4, levels=2, mode='code'))
    bands = dwt2d(student[:1] - teacher[:1], 2)
    wanted = [bands.low, *bands.high[0], *bands.high[1]]
    for found, band in zip_equal(maps.difference, wanted):
        np.testing.assert_allclose(found, band[0].abs().mean(0).numpy(), rtol=1e-5)
    assert list(named_groups(maps.teacher, 'band')) == [
        'low band',
        *(f'{kind} {level}' for level in (1, 2) for kind in ('horizontal', 'vertical', 'diagonal')),
    ]


def test_the_maps_are_standardised_as_in_the_loss() -> None:
    teacher = noise()
    for loss, free in ((WaveletLoss(4, levels=1), True), (FreeKDLoss(4, levels=1, relation=None), False)):
        assert max(band.max() for band in band_maps(teacher, teacher, loss).difference) == 0
        # A student of another scale differs from the teacher, unless each side is divided by its own deviation.
        difference = band_maps(3 * teacher, teacher, loss).difference[-1].mean()
        assert difference < 1e-3 if free else difference > 1


def test_the_maps_hold_no_edge_at_the_border_that_the_loss_does_not_see() -> None:
    teacher = noise(size=13)
    for mean in (0, 100):
        band = band_maps(teacher + mean, teacher + mean, WaveletLoss(4, levels=2)).teacher[1]
        assert band.shape == (6, 6)
        np.testing.assert_allclose(band, band_maps(teacher, teacher, WaveletLoss(4, levels=2)).teacher[1], rtol=1e-3)
    band = band_maps(teacher, teacher, FreeKDLoss(4, levels=2, relation=None)).teacher[1]
    assert band.shape == (7, 7)


def test_the_bands_lie_where_the_text_says() -> None:
    bands = [np.full((2, 2), 1.0 if index == 2 else 0.0) for index in range(7)]
    picture = pyramid(bands, (64, 64)).astype(int)
    bright = (picture[..., 0] > 150) & (picture[..., 2] < 150)
    height, width = bright.shape
    assert bright[3 * height // 4, width // 4]  # vertical detail of the finest level: bottom left
    assert not bright[height // 4, 3 * width // 4]
    assert bright.mean() == pytest.approx(0.25, abs=0.02)


def test_pictures_have_the_proportions_of_the_image() -> None:
    picture = pyramid([np.ones((3, 6))] * 4, (100, 200))
    assert picture.shape[1] == pytest.approx(2 * picture.shape[0], abs=2)


def test_tiles_have_their_titles_above_them() -> None:
    dark = np.zeros((20, 300, 3), np.uint8)
    drawn = grid([[Tile('one', dark), Tile('two', dark)], [Tile('three', dark)]])
    assert drawn.shape == (2 * (20 + TITLE + GAP), 2 * (300 + GAP), 3)
    assert (drawn[:TITLE, :100] < 100).any()
    assert (drawn[TITLE : TITLE + 20, :300] == 0).all()
    assert (drawn[-20:, 310:] == 255).all()


def test_masks_say_their_band_and_token(tmp_path: Path) -> None:
    image = np.full((64, 64, 3), 200, np.uint8)
    masks = {'low band': torch.rand(2, 4, 4), 'details 1': torch.rand(2, 8, 8)}
    titles = [[tile.title for tile in row] for row in mask_tiles(image, masks)]
    assert titles == [[f'{band}, token {token}' for token in (0, 1)] for band in ('low band', 'details 1')]
    (file,) = mask_pictures(image, {'neck[0]': masks}, tmp_path)
    assert cv2.imread(str(file)).shape == (2 * (SIDE + TITLE + GAP), 3 * (SIDE + GAP), 3)


def test_an_image_comes_back_as_it_was_loaded() -> None:
    from mmdet.models import DetDataPreprocessor

    image = torch.randint(0, 256, (3, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    for options in (tiny_configs.MEAN_STD, {**tiny_configs.MEAN_STD, 'bgr_to_rgb': False}, {}):
        preprocessor = DetDataPreprocessor(**options)
        inputs = preprocessor({'inputs': [image], 'data_samples': None}, False)['inputs'][0].float()
        assert np.array_equal(as_rgb(inputs, preprocessor), image.flip(0).permute(1, 2, 0).numpy())


def test_looking_leaves_no_trace(tmp_path: Path, scenes_root: Path) -> None:
    from mmengine.config import Config

    from freekd_mm.runtime.export import some_samples

    config = tiny_configs.detector(scenes_root, channels=STUDENT, levels=LEVELS)
    big = tiny_configs.detector(scenes_root, width=16, channels=TEACHER, levels=LEVELS)['model']
    teacher = {'model': big, 'checkpoint': str(save_weights(big, tmp_path / 't.pth'))}
    model = build(distilled(config, teacher, {'freekd': entry(tmp_path)})['model']).train()
    (sample,), _ = some_samples(Config({**config, 'default_scope': 'mmdet'}), 1)
    frozen = next(module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modes = {name: module.training for name, module in model.named_modules()}
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()

    view = look(model, sample)

    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == states[1:]
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert not frozen.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(model.distillation.student_recorder.outputs.values())
    seen = view.entries[0]
    assert seen.remarks == []
    assert [len(found) for found in (seen.bands, seen.masks, seen.weights)] == [LEVELS] * 3
    assert view.image.shape == (64, 64, 3)
    assert list(overviews(seen, view.image)) == ['bands', 'masks', 'weights']


@pytest.mark.parametrize(
    ('kind', 'remarks'), [('wavelet', ['low band', 'batch']), ('code', ['low band']), ('paper', [])]
)
def test_what_the_loss_does_not_see_is_said(kind: str, remarks: list[str]) -> None:
    loss = WaveletLoss(4, levels=1) if kind == 'wavelet' else FreeKDLoss(4, levels=1, mode=kind)
    entry = SimpleNamespace(name='kd', teacher_name='teacher', logits=False, losses=[loss])
    found = compared_by(entry, [noise()], [noise(seed=1)]).remarks
    assert len(found) == len(remarks)
    assert all(word in line for word, line in zip_equal(remarks, found))


@pytest.mark.parametrize(('logits', 'shape'), [(True, (2, 4, 16, 16)), (False, (2, 8, 16, 16))])
def test_what_cannot_be_shown_says_why(logits: bool, shape: tuple[int, ...]) -> None:
    entry = SimpleNamespace(name='kd', teacher_name='teacher', logits=logits, losses=[FreeKDLoss(4)])
    seen = compared_by(entry, [noise()], [torch.zeros(shape)])
    assert seen.bands == []
    assert ('logits' if logits else 'other shapes') in seen.note


def test_a_folder_without_pictures_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint, view = tmp_path / 'kd.pth', View(np.zeros((8, 8, 3), np.uint8), [Seen('kd', note='it has no bands')])
    checkpoint.touch()
    monkeypatch.setattr('freekd_mm.visualize.draw.read_images', lambda *_: [])
    monkeypatch.setattr('freekd_mm.visualize.draw.compare', lambda *_: [view])
    with pytest.raises(ValueError, match='there is nothing to show: kd: it has no bands'):
        visualize(Config({}), checkpoint, ['a.png'], tmp_path / 'out')
