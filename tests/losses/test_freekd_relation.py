"""The relational weights of FreeKD: their formula, and that no gate can game the loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from freekd_mm.compat.versions import zip_equal
from freekd_mm.frequency import dwt2d
from freekd_mm.losses import FreeKDLoss
from freekd_mm.losses.freekd import RelationGate, _log_gate, relations


def levels(seed, channels=6, sizes=((16, 12), (8, 6), (4, 3))):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, channels, *size, generator=generator) for size in sizes]


def relation_of(levels, index, kind):
    return relations(levels, kind)[index]


def test_bounded_relation_is_a_softmax_of_correlations_at_the_deeper_levels_size():
    fine, deep, _ = levels(0)
    relation = relation_of([fine, deep], 0, 'bounded')
    assert relation.shape == (2, 6, 6)
    for image in range(2):
        pooled = fine[image].numpy().reshape(6, 8, 2, 6, 2).mean((2, 4)).reshape(6, -1)
        correlations = np.corrcoef(deep[image].numpy().reshape(6, -1), pooled)[:6, 6:]
        exponentials = np.exp(correlations / 0.1)
        wanted = exponentials / exponentials.sum(1, keepdims=True)
        np.testing.assert_allclose(relation[image].numpy(), wanted, rtol=1e-4)


def test_printed_relation_is_a_softmax_of_raw_products():
    fine, deep, _ = levels(0)
    pooled = F.avg_pool2d(fine, 2)
    wanted = torch.softmax(torch.einsum('nchw,ndhw->ncd', deep, pooled), 2)
    torch.testing.assert_close(relation_of([fine, deep], 0, 'printed'), wanted)
    wanted = torch.softmax(torch.einsum('nchw,ndhw->ncd', deep, deep), 2)
    torch.testing.assert_close(relation_of([fine, deep], 1, 'printed'), wanted, msg='the deepest, to itself')


@pytest.mark.parametrize('index', [0, 1], ids=['to the deeper one', 'the deepest, to itself'])
def test_bounded_relation_of_large_maps_is_taken_over_at_most_300_positions(index):
    """25 x 13 are 325: both maps are averaged to half of that, rounded up."""
    fine, deep = maps = levels(0, sizes=((40, 40), (25, 13)))
    rows, others = (F.adaptive_avg_pool2d(x, (13, 7)).flatten(2).numpy() for x in (maps[index], deep))
    for image, relation in enumerate(relation_of(maps, index, 'bounded').numpy()):
        exponentials = np.exp(np.corrcoef(others[image], rows[image])[:6, 6:] / 0.1)
        np.testing.assert_allclose(relation, exponentials / exponentials.sum(1, keepdims=True), rtol=1e-3)
    pooled = F.adaptive_avg_pool2d(fine, (25, 13))
    wanted = torch.softmax(torch.einsum('nchw,ndhw->ncd', deep, pooled), 2)
    torch.testing.assert_close(relation_of(maps, 0, 'printed'), wanted, msg='the paper has no such limit')


def test_bounded_relation_does_not_depend_on_the_scale_of_the_features():
    fine, deep, _ = levels(0)
    first, second = (relation_of(pair, 0, 'bounded') for pair in ([1000 * fine + 3, 0.01 * deep], [fine, deep]))
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('size', [(15, 11), (16, 12), (7, 6), (3, 20)])
@pytest.mark.parametrize('kind', ['bounded', 'printed'])
def test_relation_takes_any_sizes(size, kind):
    relation = relation_of([torch.randn(2, 4, *size), torch.randn(2, 5, 7, 6)], 0, kind)
    torch.testing.assert_close(relation.sum(2), torch.ones(2, 5))


def test_bounded_weights_are_one_on_average_and_at_least_a_half():
    gate = RelationGate('bounded', 6)
    for weights in gate(levels(0), levels(1)):
        torch.testing.assert_close(weights, torch.ones(2, 6), msg='they start at one')
    for parameter in gate.parameters():
        torch.nn.init.normal_(parameter, std=3.0)
    for weights in gate(levels(0), levels(1)):
        assert weights.shape == (2, 6)
        torch.testing.assert_close(weights.mean(1), torch.ones(2))
        assert weights.min() >= 0.5


def test_printed_weights_are_the_product_of_both_gates():
    gate = RelationGate('printed', 6)
    for weights in gate(levels(0), levels(1)):
        torch.testing.assert_close(weights, torch.full((2, 6), 0.25))
    for parameter in gate.parameters():
        torch.nn.init.normal_(parameter)
    students, teachers = levels(0), levels(1)
    ours, theirs = (_log_gate(gate.mlps[0], relation_of(side, 0, 'printed')).exp() for side in (students, teachers))
    torch.testing.assert_close(gate(students, teachers)[0], ours * theirs)


@pytest.mark.parametrize('channels', [6, (6, 6, 6)])
def test_the_default_loss_weighs_each_channel_with_its_gate(channels):
    torch.manual_seed(0)
    loss = FreeKDLoss(channels, min_positions=0)
    for parameter in loss.gate.parameters():
        torch.nn.init.normal_(parameter)
    students, teachers = levels(0), levels(1)
    total, count = 0.0, 0
    for index, (student, teacher) in enumerate(zip_equal(students, teachers)):
        mlp = loss.gate.mlps[index if len(loss.gate.mlps) > 1 else 0]
        relation = [relation_of(side, index, 'bounded') for side in (teachers, students)]
        # A column of the relation, scaled by its length: what a channel gets from each deeper one.
        theirs, ours = (torch.sigmoid(mlp(6 * one.transpose(1, 2)).squeeze(2)) for one in relation)
        gate = 0.5 + 0.5 * theirs * ours / (theirs * ours).mean(1, keepdim=True)
        assert gate.std() > 0.1
        bands = dwt2d(student - teacher, 3)
        for band in (bands.low, *(band for detail in bands.high for band in detail)):
            for image, channel in np.ndindex(2, 6):
                total += float(gate[image, channel] * band[image, channel].abs().sum())
            count += band.numel()
    assert loss(students, teachers).item() == pytest.approx(total / count, rel=1e-4)


@pytest.mark.parametrize('channels', [6, (6, 6, 6)])
def test_a_gate_trained_alone_cannot_take_the_loss_below_half_of_its_value(channels):
    torch.manual_seed(0)
    students, teachers = levels(0), levels(1)
    # Make it worth cheating: nearly all of the loss lies in one channel.
    students = [
        torch.cat((level[:, :1] * 50, level[:, 1:] * 0.01 + t[:, 1:]), 1) for level, t in zip_equal(students, teachers)
    ]
    loss = FreeKDLoss(channels, min_positions=0)
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


def test_the_printed_gate_learns_to_take_the_loss_away():
    """What the paper prints has the loss as its only teacher: that is why 'bounded' is the default."""
    torch.manual_seed(0)
    students, teachers = levels(0), levels(1)
    loss = FreeKDLoss(6, relation='printed', min_positions=0)
    start = loss(students, teachers).item()
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.05)
    for _ in range(200):
        value = loss(students, teachers)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert loss(students, teachers).item() < 1e-3 * start


def test_teacher_and_student_both_count_and_give_no_gradient():
    gate = RelationGate('bounded', 6)
    for parameter in gate.parameters():
        torch.nn.init.normal_(parameter)
    students, teachers = [level.requires_grad_() for level in levels(0)], levels(1)
    base = gate(students, teachers)[0]
    assert not torch.allclose(base, gate(levels(2), teachers)[0])
    assert not torch.allclose(base, gate(students, levels(2))[0])
    assert all(gradient is None for gradient in torch.autograd.grad(base.square().sum(), students, allow_unused=True))


def test_every_parameter_of_the_gate_gets_a_gradient():
    loss = FreeKDLoss(6, min_positions=0)
    for _ in range(2):
        loss.zero_grad()
        loss(levels(0), levels(1)).backward()
        assert all(parameter.grad is not None for parameter in loss.parameters())
        with torch.no_grad():
            for parameter in loss.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    assert all(parameter.grad.abs().sum() > 0 for parameter in loss.gate.mlps[0][2].parameters())


@pytest.mark.parametrize('relation', ['bounded', 'printed'])
def test_a_single_level_and_constant_features_work(relation):
    loss = FreeKDLoss(3, relation=relation, min_positions=0)
    student = torch.zeros(1, 3, 4, 4, requires_grad=True)
    loss(student, torch.ones(1, 3, 4, 4)).backward()
    assert torch.isfinite(student.grad).all()


def test_wrong_options_are_named():
    with pytest.raises(ValueError, match="relation should be one of 'bounded', 'printed', but got 'gate'"):
        RelationGate('gate', 4)
