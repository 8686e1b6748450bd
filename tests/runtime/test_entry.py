"""One entry: names, connectors, losses of one or all levels, precision, and what it says when shapes do not fit."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from distill_cases import CWD, L2, needs_mmrazor
from mmengine.model import BaseModule
from torch import nn

from freekd_mm.compat.versions import zip_equal
from freekd_mm.losses import FiGKDLoss
from freekd_mm.runtime.entry import Entry, PerLevel

IMAGE = (64, 64)


def wired(students, teachers, **cfg):
    entry = Entry('kd', {'loss': L2, **cfg})
    entry.wire(students, teachers, IMAGE)
    return entry


def levels(*shapes, seed=0, grad=False):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(2, *shape, generator=generator).requires_grad_(grad) for shape in shapes)


@pytest.mark.parametrize('name', ['my_loss', 'a.b', 'kd-1', '', 3])
def test_name(name):
    """A term called a loss would be added to the loss by mmengine."""
    with pytest.raises(ValueError, match="should be an identifier without 'loss' in it, but got"):
        Entry(name, {'loss': L2})


def test_options():
    with pytest.raises(ValueError, match=r"distill 'kd' has no option 'wieght'; .*Did you mean 'weight'"):
        Entry('kd', {'loss': L2, 'wieght': 1})
    with pytest.raises(TypeError, match="distill 'kd' should be a dict with at least 'loss'"):
        Entry('kd', {'student': 'neck'})
    with pytest.raises(ValueError, match="weight of distill 'kd' should be at least 0, but got -1"):
        Entry('kd', {'loss': L2, 'weight': -1})


def test_loss_for_one_tensor_runs_once_a_level():
    students, teachers = levels((4, 8, 8), (4, 4, 4)), levels((4, 8, 8), (4, 4, 4), seed=1)
    entry = wired(students, teachers, weight=3.0)
    assert len(entry.losses) == 2
    values = [F.mse_loss(s, t) for s, t in zip_equal(students, teachers)]
    logs = entry(students, teachers, IMAGE)
    assert set(logs) == {'distill.loss_kd', 'distill.kd.level0', 'distill.kd.level1'}
    assert torch.allclose(logs['distill.loss_kd'], 3 * sum(values))
    assert torch.allclose(logs['distill.kd.level1'], values[1])
    assert not logs['distill.kd.level0'].requires_grad
    entry.scale = 0.25
    logs = entry(students, teachers, IMAGE)
    assert torch.allclose(logs['distill.loss_kd'], 0.25 * 3 * sum(values))
    assert torch.allclose(logs['distill.kd.level1'], values[1])


def test_loss_for_all_levels_runs_once():
    students, teachers = levels((4, 8, 8), (4, 4, 4)), levels((4, 8, 8), (4, 4, 4), seed=1)
    entry = wired(students, teachers, loss={'type': 'freekd_mm.FeatureMSELoss'})
    assert len(entry.losses) == 1
    logs = entry(students, teachers, IMAGE)
    assert torch.allclose(logs['distill.loss_kd'], sum(map(F.mse_loss, students, teachers)))
    assert any(key.startswith('distill.kd.level1') for key in logs)


def test_weight_and_scale_decide_whether_it_is_active():
    features = levels((4, 8, 8))
    entry = wired(features, features)
    assert entry.active
    entry.scale = 0.0
    assert not entry.active
    assert not wired(features, features, weight=0).active
    assert not wired(features, features, loss={**L2, 'loss_weight': 0.0}).active


def test_unused_levels_are_named():
    entry = wired(levels((4, 8, 8), (4, 4, 4)), levels((4, 16, 16), (4, 8, 8), (4, 4, 4), (4, 2, 2)))
    assert [row[2:5:2] for row in entry.rows[:2]] == [['4x8x8', '4x8x8'], ['4x4x4', '4x4x4']]
    assert '2 level(s) of the teacher not used' in entry.rows[2]


def test_connector_false_and_any_shape_compare_as_it_is():
    students, teachers = levels((4, 8, 8)), levels((6, 8, 8))
    entry = wired(students, teachers, loss={'type': 'freekd_mm.DCTAttentionLoss'})
    assert entry.connector is None
    assert entry(students, teachers, IMAGE)['distill.loss_kd'] > 0
    assert wired(students, students, connector=False).connector is None


@needs_mmrazor
def test_loss_that_cannot_compare_names_the_shapes():
    students, teachers = levels((4, 8, 8)), levels((6, 4, 4))
    entry = wired(students, teachers, connector=False, loss=CWD)
    message = r"distill 'kd': ChannelWiseDivergence cannot compare the student's \(2, 4, 8, 8\) with .*\(2, 6, 4, 4\)"
    with pytest.raises(ValueError, match=message):
        entry(students, teachers, IMAGE)


def test_map_and_vector_cannot_be_compared():
    with pytest.raises(ValueError, match="at level 0 the student's 4x8x8 and the teacher's 4 should both be maps"):
        wired(levels((4, 8, 8)), levels((4,)))
    with pytest.raises(ValueError, match='only maps are projected and resized, but the shapes are 4 and the teacher'):
        wired(levels((4,)), levels((6,)))
    assert wired(levels((4,)), levels((4,))).connector is None


def test_tokens_are_compared_as_maps():
    students, teachers = levels((65, 4)), levels((6, 16, 16), seed=1)
    entry = wired(students, teachers)
    assert entry.rows[0][-1] == 'projected 4 -> 6, upsampled'
    assert entry(students, teachers, IMAGE)['distill.loss_kd'] > 0


def test_query_logits_stay_as_their_head_gives_them():
    logits, others = levels((10, 6), (10, 6)), levels((10, 6), (10, 6), seed=1)
    entry = wired(logits, logits, loss={'type': 'freekd_mm.FiGKDLoss', 'class_dim': -1})
    wanted = FiGKDLoss(class_dim=-1)(logits, others)
    torch.testing.assert_close(entry(logits, others, IMAGE)['distill.loss_kd'], wanted)


def test_connector_of_one_level_is_built_once_a_level():
    students, teachers = levels((4, 8, 8), (4, 4, 4)), levels((6, 8, 8), (6, 4, 4))
    connector = {'type': 'mmrazor.MGDConnector', 'student_channels': 4, 'teacher_channels': 6}
    entry = wired(students, teachers, connector=connector, loss={'type': 'mmrazor.MGDLoss', 'alpha_mgd': 1.0})
    assert isinstance(entry.connector, PerLevel)
    first, second = entry.connector
    assert first is not second
    assert [row[-1] for row in entry.rows] == ['MGDConnector', 'MGDConnector']


def test_list_of_connectors():
    students, teachers = levels((4, 8, 8), (5, 4, 4)), levels((6, 8, 8), (7, 4, 4))
    connectors = [
        {'type': 'mmrazor.ConvModuleConnector', 'in_channel': s[1], 'out_channel': t[1]}
        for s, t in zip_equal([x.shape for x in students], [x.shape for x in teachers])
    ]
    entry = wired(students, teachers, connector=connectors)
    assert entry(students, teachers, IMAGE)['distill.loss_kd'] > 0
    with pytest.raises(ValueError, match="connector of distill 'kd' should be a list of 2, one per level, but got 1"):
        wired(students, teachers, connector=connectors[:1])


def test_connector_of_all_levels():
    students, teachers = levels((4, 8, 8), (4, 4, 4)), levels((6, 16, 16), (6, 4, 4))
    connector = {'type': 'freekd_mm.FAMConnector', 'in_channels': 4, 'out_channels': 6, 'num_levels': 2, 'rank': 2}
    entry = wired(students, teachers, connector=connector)
    assert entry(students, teachers, IMAGE)['distill.loss_kd'] > 0  # resized to the teacher's where strides differ


def test_a_connector_with_norms_is_checked_without_training_them():
    """A level of one position has no deviation, and the dummy image is no data."""
    students, teachers = levels((4, 2, 2), (4, 1, 1)), levels((6, 2, 2), (6, 1, 1))
    connector = {'type': 'freekd_mm.FAMConnector', 'in_channels': 4, 'out_channels': 6, 'num_levels': 2, 'rank': 2}
    entry = Entry('kd', {'loss': L2, 'connector': {**connector, 'post': 'bn_relu'}})
    entry.wire([level[:1] for level in students], [level[:1] for level in teachers], IMAGE)
    norms = [module for module in entry.modules() if isinstance(module, nn.BatchNorm2d)]
    assert [int(norm.num_batches_tracked) for norm in norms] == [0, 0]
    assert entry(students, teachers, IMAGE)['distill.loss_kd'] > 0
    assert [int(norm.num_batches_tracked) for norm in norms] == [1, 1]


def test_connector_with_other_channels():
    connector = {'type': 'mmrazor.ConvModuleConnector', 'in_channel': 4, 'out_channel': 5}
    with pytest.raises(
        ValueError, match=r"connector of distill 'kd' should give the teacher's channels \[6\], but gives"
    ):
        wired(levels((4, 8, 8)), levels((6, 8, 8)), connector=connector)


class Connector(BaseModule):
    """A connector with an init rule, as mmrazor's connectors may have one."""

    def __init__(self, init_cfg=None):
        super().__init__(init_cfg)
        self.conv = nn.Conv2d(4, 6, 1)

    def forward(self, x):
        return self.conv(x)


def test_connectors_are_initialised_by_their_own_rules():
    rule = {'type': 'Constant', 'layer': 'Conv2d', 'val': 0.25}
    entry = wired(levels((4, 8, 8)), levels((6, 8, 8)), connector={'type': Connector, 'init_cfg': rule})
    assert torch.equal(entry.connector[0].conv.weight, torch.full((6, 4, 1, 1), 0.25))


def test_projects_and_resizes_each_level():
    students, teachers = levels((4, 8, 8), (6, 4, 4), (6, 4, 4), grad=True), levels((6, 8, 8), (6, 8, 8), (6, 2, 2))
    entry = wired(students, teachers)
    assert [sum(p.numel() for p in phi.parameters()) for phi in entry.connector] == [4 * 6 + 6, 0, 0]
    entry(students, teachers, IMAGE)['distill.loss_kd'].backward()
    assert all(level.grad.abs().sum() > 0 for level in students)
    assert all(parameter.grad is not None for parameter in entry.parameters())
    # Another image size: the sizes are those at hand.
    other = levels((4, 17, 8), (6, 9, 4), (6, 9, 4)), levels((6, 16, 8), (6, 16, 8), (6, 4, 2))
    compared, _ = entry.compared(*other, IMAGE)
    assert [tuple(level.shape[1:]) for level in compared] == [(6, 16, 8), (6, 16, 8), (6, 4, 2)]


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_losses_compute_in_full_precision(dtype):
    """The sum of squares of one level is beyond what float16 can hold."""
    students, teachers = ((40 * x).to(dtype) for x in levels((8, 32, 32)) + levels((8, 32, 32), seed=1))
    loss = {'type': 'mmrazor.L2Loss', 'normalize': False}
    entry = wired((students,), (teachers,), connector=False, loss=loss)
    expected = (students.double() - teachers.double()).square().sum() / 2
    assert expected > 65504
    with torch.autocast('cpu', dtype=torch.bfloat16):
        value = entry((students,), (teachers,), IMAGE)['distill.loss_kd']
    assert value.dtype == torch.float32
    assert torch.allclose(value.double(), expected, rtol=1e-5)
