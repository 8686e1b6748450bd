"""How selective a prompt is: the numbers against loops, on boxes and labels, and what is said of them."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.structures import InstanceData, PixelData
from torch import Tensor, nn

from freekd_mm.prompts.masks import LOW, named_groups
from freekd_mm.stage1 import selectivity
from freekd_mm.stage1.bank import PromptBank
from freekd_mm.stage1.selectivity import describe, flat_bands, object_edges, of_masks, selects


class Sample(dict):
    """A data sample as far as :func:`object_edges` looks at it."""

    __getattr__ = dict.__getitem__


def test_the_edges_of_a_detector_are_the_borders_of_its_boxes() -> None:
    sample = Sample(gt_instances=InstanceData(bboxes=torch.tensor([[1.0, 2.0, 4.0, 5.0], [-3.0, -3.0, 0.0, 99.0]])))
    edges = object_edges(sample, (8, 6))
    wanted = np.zeros((8, 6))
    wanted[2:6, 1:5] = 1
    wanted[:, 0] = 1
    wanted[3:5, 2:4] = 0
    assert edges is not None
    np.testing.assert_array_equal(edges[0], wanted)


def test_the_edges_of_a_segmenter_are_where_labels_change() -> None:
    labels = torch.zeros(1, 4, 5, dtype=torch.long)
    labels[0, 2:, 3:] = 7
    edges = object_edges(Sample(gt_sem_seg=PixelData(data=labels)), (6, 5))
    wanted = np.zeros((6, 5))
    wanted[2, 3:] = wanted[2:4, 3] = 1
    assert edges is not None
    np.testing.assert_array_equal(edges[0], wanted)


def test_what_a_sample_does_not_know_is_unknown() -> None:
    assert object_edges(Sample(), (4, 4)) is None


def test_ratios_and_spread_equal_loops_over_the_positions() -> None:
    torch.manual_seed(0)
    edges = (torch.rand(2, 1, 16, 24) < 0.03).float()
    masks = torch.rand(2, 3, 4, 6)
    got = selects(masks.split(1), edges.split(1))
    weight = masks.mean(1, keepdim=True)
    found: tuple[list[float], list[float]] = ([], [])
    for n, i, j in np.ndindex(2, 4, 6):
        cell = np.s_[n, 0, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4]
        found[int(edges[cell].sum() > 0)].append(float(weight[n, 0, i, j]))
    elsewhere, there = map(np.mean, found)
    assert got['edges'] == pytest.approx(there / elsewhere, rel=1e-5)
    assert got['spread'] == pytest.approx(float(weight.std(unbiased=False) / weight.mean()), rel=1e-4)
    for unknown in (torch.zeros(2, 1, 16, 24), None):
        assert selects([masks], [unknown]) == {**got, 'edges': None}


def test_the_masks_of_an_image_tell_the_spread_alone() -> None:
    low, fine = torch.ones(2, 2, 2), torch.stack((torch.zeros(4, 4), torch.eye(4)))
    told = of_masks({'neck[0]': {LOW: low, 'details 1': fine}})
    bands = told['bands']['neck[0]']
    assert list(bands) == [LOW, 'details 1']
    assert bands[LOW]['spread'] == 0
    assert bands['details 1']['spread'] == pytest.approx(float(torch.eye(4).std(unbiased=False)) / 0.25)
    assert describe(told).splitlines()[2].split() == ['neck[0]', 'details', '1', '-', '1.73']


def test_a_flat_weight_is_named_but_for_the_low_band() -> None:
    band = dict(edges=1.0, spread=0.05)
    measured = dict(
        images=4,
        task_loss=[0.5, 0.55],
        bands={'neck[0]': {LOW: band, 'details 1': {**band, 'spread': 0.5}, 'details 2': band}},
    )
    assert flat_bands(measured) == ['neck[0] details 2']
    assert describe(measured).splitlines()[-1] == (
        'task loss on these 4 images: 0.5000 without the prompt, 0.5500 with it (+10.0%)'
    )


def test_names_of_the_bands() -> None:
    by_band = {LOW: 0, 'horizontal 1': 1, 'vertical 1': 2, 'diagonal 1': 3, 'horizontal 2': 4}
    assert named_groups(range(5), 'band') == by_band
    assert named_groups(range(3), 'level') == {LOW: 0, 'details 1': 1, 'details 2': 2}


def test_the_task_loss_is_taken_where_the_model_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU does not add its losses to a zero of the CPU."""
    images, seen = torch.zeros(1, 3, 8, 8), []

    class Model:
        @staticmethod
        def data_preprocessor(batch: object, training: bool) -> dict:
            return {'inputs': images, 'data_samples': [Sample()]}

        def __call__(self, inputs: torch.Tensor, data_samples: list, mode: str) -> dict:
            return {'loss': torch.tensor(3.0 if bank.active else 2.0)}

    def task_loss(losses: dict, inputs: torch.Tensor) -> torch.Tensor:
        seen.append(inputs)
        return losses['loss']

    monkeypatch.setattr(selectivity, 'task_loss', task_loss)
    bank = torch.nn.Module()
    bank.active, bank.seen, bank.first = True, None, []
    found, _ = selectivity.measure(Model(), bank, [None])
    assert found['task_loss'] == [2.0, 3.0], 'without and with the prompt'
    assert all(inputs is images for inputs in seen)


class Drawing:
    """A model whose loss is a random number, and whose masks have one group more in every batch."""

    def __init__(self, bank: torch.nn.Module) -> None:
        self.bank, self.batches = bank, 0

    def data_preprocessor(self, batch: object, training: bool) -> dict:
        self.batches += 1
        return {'inputs': torch.zeros(1, 3, 8, 8), 'data_samples': [Sample()]}

    def __call__(self, inputs: torch.Tensor, data_samples: list, mode: str) -> dict:
        if self.bank.active:
            # None, then the low band and one level, then two levels: as of images of three sizes.
            groups = [torch.full((1, 2, 2, 2), 0.5 + 0.1 * self.batches) for _ in range(self.batches)]
            self.bank.seen['neck[0]'] = groups if self.batches > 1 else []
        return {'loss': torch.rand(())}


@pytest.fixture
def bank() -> torch.nn.Module:
    found = torch.nn.Module()
    found.active, found.seen, found.first = True, None, [SimpleNamespace(grouping='level')]
    return found


def test_batches_of_other_sizes_count_where_they_have_a_band(bank: torch.nn.Module) -> None:
    found, last = selectivity.measure(Drawing(bank), bank, [None] * 3)
    assert list(found['bands']['neck[0]']) == list(last['neck[0]']) == [LOW, 'details 1', 'details 2']
    spreads = [band['spread'] for band in found['bands']['neck[0]'].values()]
    assert spreads == pytest.approx([0.05 / 0.75, 0.05 / 0.75, 0.0], abs=1e-6)


def test_heads_that_sample_do_so_alike_without_and_with_the_prompt(bank: torch.nn.Module) -> None:
    found, _ = selectivity.measure(Drawing(bank), bank, [None] * 3)
    assert found['task_loss'][0] == found['task_loss'][1] > 0


class Teacher(nn.Module):
    """A model with one map and a loss on it."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Conv2d(3, 4, 1)

    @staticmethod
    def data_preprocessor(batch: Tensor, training: bool) -> dict:
        return {'inputs': batch, 'data_samples': [Sample()] * len(batch)}

    def forward(self, inputs: Tensor, data_samples: list, mode: str) -> dict:
        return {'loss': self.backbone(inputs).square().mean()}


def test_a_prompt_in_training_is_measured_as_its_file_has_it_and_stays_as_it_is() -> None:
    torch.manual_seed(0)
    model, bank = Teacher(), PromptBank({'backbone': {0: 4}}, mode='selective')
    bank.plug_into(model)
    model.train()
    first, *batches = torch.randn(3, 2, 3, 16, 16)
    model(first, [], 'loss')  # the running statistics are those of another batch
    bank.overlaps = []
    before = copy.deepcopy(bank.state_dict())
    found, _ = selectivity.measure(model, bank, batches)
    assert bank.training
    assert all(module.training for module in bank.modules())
    assert bank.active
    torch.testing.assert_close(dict(bank.state_dict()), dict(before), rtol=0, atol=0)
    bank.active = False
    maps = [model.backbone(batch) for batch in batches]
    prompt = copy.deepcopy(bank.first[0]).eval()
    wanted = [float(sum(x.square().mean() for x in own)) / 2 for own in (maps, [prompt(x)[0] for x in maps])]
    assert wanted[1] < 0.99 * wanted[0]
    assert found['task_loss'] == pytest.approx(wanted, rel=1e-5)
