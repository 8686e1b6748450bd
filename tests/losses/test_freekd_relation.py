"""The relational weights of FreeKD: their formula, and that no gate can game the loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from freekd_mm.compat.versions import zip_equal
from freekd_mm.losses import FreeKDLoss
from freekd_mm.losses.freekd.relation import RelationGate, _halve, _pool, channel_relation


def levels(seed, channels=6, sizes=((16, 12), (8, 6), (4, 3))):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, channels, *size, generator=generator) for size in sizes]


def test_relation_is_a_softmax_of_correlations_at_the_deeper_levels_size():
    fine, deep, _ = levels(0)
    relation = channel_relation(fine, deep)
    assert relation.shape == (2, 6, 6)
    for image in range(2):
        pooled = fine[image].numpy().reshape(6, 8, 2, 6, 2).mean((2, 4)).reshape(6, -1)
        correlations = np.corrcoef(deep[image].numpy().reshape(6, -1), pooled)[:6, 6:]
        exponentials = np.exp(correlations / 0.1)
        wanted = exponentials / exponentials.sum(1, keepdims=True)
        np.testing.assert_allclose(relation[image].numpy(), wanted, rtol=1e-4)


@pytest.mark.parametrize('size', [(5, 7), (1, 4), (6, 1), (8, 9)])
def test_pooling_averages_the_pixels_that_are_there(size):
    x = torch.randn(2, 3, *size)
    wanted = torch.nn.functional.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)
    torch.testing.assert_close(_halve(x), wanted)
    torch.testing.assert_close(_pool(x, tuple(wanted.shape[2:])), wanted)
    assert _pool(x, size) is x
    assert _pool(x, (1, 1)).shape == (2, 3, 1, 1)


def test_relation_does_not_depend_on_the_scale_of_the_features():
    fine, deep, _ = levels(0)
    torch.testing.assert_close(channel_relation(1000 * fine + 3, 0.01 * deep), channel_relation(fine, deep))


@pytest.mark.parametrize('size', [(15, 11), (16, 12), (7, 6), (3, 20)])
def test_relation_takes_any_sizes_and_a_limit_of_pixels(size):
    fine = torch.randn(2, 4, *size)
    assert torch.isfinite(channel_relation(fine, torch.randn(2, 5, 7, 6))).all()
    limited = channel_relation(fine, torch.randn(2, 5, 7, 6), max_pixels=4)
    torch.testing.assert_close(limited.sum(2), torch.ones(2, 5))


@pytest.mark.parametrize('relation', ['mlp', 'free'])
def test_weights_are_one_on_average_and_at_least_a_half(relation):
    gate = RelationGate(relation, 6)
    for parameter in gate.parameters():
        torch.nn.init.normal_(parameter, std=3.0)
    for weights in gate(levels(0), levels(1)):
        assert weights.shape == (2, 6)
        torch.testing.assert_close(weights.mean(1), torch.ones(2))
        assert weights.min() >= 0.5


def test_the_mlp_starts_at_one_and_the_free_gate_has_no_parameters():
    for weights in RelationGate('mlp', 6)(levels(0), levels(1)):
        torch.testing.assert_close(weights, torch.ones(2, 6))
    free = RelationGate('free', 6)
    assert not list(free.parameters())
    students, teachers = levels(0), levels(1)
    received = [channel_relation(side[0], side[1]).sum(1) for side in (teachers, students)]
    product = received[0] * received[1]
    wanted = 0.5 + 0.5 * product / product.mean(1, keepdim=True)
    torch.testing.assert_close(free(students, teachers)[0], wanted)
    assert wanted.std() > 1e-3


def test_teacher_and_student_both_count_and_the_deepest_level_is_related_to_itself():
    gate = RelationGate('free', 6)
    base = gate(levels(0), levels(1))
    assert not torch.allclose(base[0], gate(levels(2), levels(1))[0])
    assert not torch.allclose(base[0], gate(levels(0), levels(2))[0])
    one = levels(0)[:1], levels(1)[:1]
    own = [channel_relation(side[0], side[0]).sum(1) for side in one]
    product = own[0] * own[1]
    torch.testing.assert_close(gate(*one)[0], 0.5 + 0.5 * product / product.mean(1, keepdim=True))


@pytest.mark.parametrize('channels', [6, (6, 6, 6)])
def test_a_gate_trained_alone_cannot_take_the_loss_below_half_of_its_value(channels):
    torch.manual_seed(0)
    students, teachers = levels(0), levels(1)
    # Make it worth cheating: nearly all of the loss lies in one channel.
    students = [
        torch.cat((level[:, :1] * 50, level[:, 1:] * 0.01 + t[:, 1:]), 1) for level, t in zip_equal(students, teachers)
    ]
    loss = FreeKDLoss(channels, normalize='none', mode='paper')
    start = loss(students, teachers).item()
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.05)
    for _ in range(200):
        value = loss(students, teachers)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    end = loss(students, teachers).item()
    assert end < 0.95 * start, 'the gate does learn'
    assert end >= 0.5 * start
    # Whatever a gate of this form says: the bound holds for every parameter.
    for parameter in loss.parameters():
        torch.nn.init.normal_(parameter, std=30.0)
    assert loss(students, teachers).item() >= 0.5 * start


def test_the_student_gets_no_gradient_through_the_gate():
    students, teachers = [level.requires_grad_() for level in levels(0)], levels(1)
    for weights in RelationGate('free', 6)(students, teachers):
        assert not weights.requires_grad


def test_every_parameter_of_the_gate_gets_a_gradient():
    loss = FreeKDLoss(6, mode='paper')
    for _ in range(2):
        loss.zero_grad()
        loss(levels(0), levels(1)).backward()
        assert all(parameter.grad is not None for parameter in loss.parameters())
        with torch.no_grad():
            for parameter in loss.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    assert all(parameter.grad.abs().sum() > 0 for parameter in loss.gate.mlps[0][2].parameters())


def test_a_single_level_and_constant_features_work():
    loss = FreeKDLoss(3, mode='paper')
    student = torch.zeros(1, 3, 4, 4, requires_grad=True)
    loss(student, torch.ones(1, 3, 4, 4)).backward()
    assert torch.isfinite(student.grad).all()


def test_wrong_options_are_named():
    with pytest.raises(ValueError, match="relation should be one of 'mlp', 'free', but got 'gate'"):
        RelationGate('gate', 4)
    with pytest.raises(ValueError, match='hidden should be greater than 0'):
        FreeKDLoss(4, relation=dict(relation='mlp', hidden=0), mode='paper')
