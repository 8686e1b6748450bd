"""The blockwise Haar distance against whole tensors, and batch statistics over two processes."""

from __future__ import annotations

import pytest
import torch
from ranks import run_two_ranks

from freekd_mm.compat.versions import zip_equal
from freekd_mm.losses import FreeKDLoss
from freekd_mm.losses.freekd import haar_step
from freekd_mm.losses.freekd.bands import band_distance, band_sizes, band_weights, whole_band_distance
from freekd_mm.losses.freekd.haar_step import blocks_of


def case(shape, levels, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    make = lambda *size: torch.rand(*size, generator=generator, dtype=dtype)  # noqa: E731
    student, teacher = (make(*shape) - 0.5 for _ in range(2))
    weights = band_weights(teacher, 'haar', 0.7, [1.0, 0.5, 0.3, 0.2][:levels])
    weights = weights._replace(low=make(shape[0], *weights.low.shape[1:]) * weights.low)
    details = [
        type(detail)(*(make(shape[0], *weight.shape[1:]) * weight for weight in detail)) for detail in weights.high
    ]
    return student, teacher, weights._replace(high=tuple(details)), make(*shape[:2])


@pytest.mark.parametrize('block', [1, 50, 2**19])
@pytest.mark.parametrize('normalize', ['none', 'channel'])
@pytest.mark.parametrize('distance', ['l1', 'l2'])
@pytest.mark.parametrize(
    ('shape', 'levels'),
    [
        ((2, 3, 8, 8), 3),
        ((2, 5, 13, 7), 3),
        ((1, 2, 1, 1), 2),
        ((3, 4, 9, 10), 4),
        ((0, 3, 5, 5), 2),
        ((2, 3, 1, 9), 3),
    ],
)
def test_blocks_give_the_value_and_gradient_of_whole_tensors(monkeypatch, block, normalize, distance, shape, levels):
    monkeypatch.setattr(haar_step, 'CPU_BLOCK', block)
    student, teacher, weights, outer = case(shape, levels)
    student.requires_grad_()
    own = band_distance(student, teacher, weights, normalize, distance)
    whole = whole_band_distance(student, teacher, weights, normalize, distance)
    for mine, other in zip_equal(own, whole):
        torch.testing.assert_close(mine, other)
    gradients = [torch.autograd.grad((value * outer).sum(), student)[0] for value, _ in (own, whole)]
    torch.testing.assert_close(*gradients)


def test_no_gradient_where_features_are_equal():
    student, teacher, weights, _ = case((2, 3, 8, 9), 3)
    student[:, :, :, :4] = teacher[:, :, :, :4]
    student.requires_grad_()
    total, _ = band_distance(student, teacher, weights)
    gradient = torch.autograd.grad(total.sum(), student)[0]
    assert (gradient[:, :, :8, 4:] != 0).any()
    equal = teacher.clone().requires_grad_()
    total, _ = band_distance(equal, teacher, weights)
    assert torch.autograd.grad(total.sum(), equal)[0].abs().sum() == 0


def test_blocks_cover_every_plane_once():
    for shape in [(2, 256, 100, 168), (3, 7, 300, 300), (5, 4, 8, 8), (1, 1, 2000, 2000), (0, 4, 5, 5)]:
        seen = torch.zeros(shape[:2])
        for block in blocks_of(torch.Size(shape), torch.device('cpu')):
            seen[block] += 1
        assert (seen == 1).all()


@pytest.mark.parametrize('wavelet', ['haar', 'db2', 'bior2.2'])
def test_band_sizes_are_those_of_the_transform(wavelet):
    for size in [(13, 9), (1, 1), (32, 5)]:
        bands = transformed_sizes(size, wavelet)
        assert band_sizes(size, 3, wavelet) == bands


def transformed_sizes(size, wavelet):
    from freekd_mm.frequency import dwt2d

    return [tuple(detail.vertical.shape[-2:]) for detail in dwt2d(torch.zeros(1, 1, *size), 3, wavelet).high]


def test_masks_of_another_size_are_refused():
    teacher = torch.zeros(1, 2, 8, 8)
    masks = band_weights(torch.zeros(1, 2, 16, 16), 'haar', 1.0, [1.0])
    with pytest.raises(ValueError, match=r'masks should have the size \(4, 4\) of their band, but got \(8, 8\)'):
        band_weights(teacher, 'haar', 1.0, [1.0], masks)


NORMALIZE = ('batch', 'channel', 'feature')


def _two_ranks(rank, folder):
    students, teachers = (torch.load(folder / f'{side}.pt') for side in ('student', 'teacher'))
    # Uneven batches: one image here, two there.
    part = slice(0, 1) if rank == 0 else slice(1, 3)
    found = {}
    for normalize in NORMALIZE:
        student = students[part].clone().requires_grad_()
        value = FreeKDLoss(4, relation=None, normalize=normalize, mode='paper')(student, teachers[part])
        value = value * len(student) / 3  # a process' value is the mean over its images
        value.backward()
        found[normalize] = (value.detach(), student.grad)
    torch.save(found, folder / f'rank{rank}.pt')


def test_two_processes_compute_what_one_does(tmp_path):
    student, teacher = torch.randn(3, 4, 10, 9), torch.randn(3, 4, 10, 9)
    torch.save(student, tmp_path / 'student.pt')
    torch.save(teacher, tmp_path / 'teacher.pt')
    run_two_ranks(_two_ranks, tmp_path)
    ranks = [torch.load(tmp_path / f'rank{rank}.pt') for rank in range(2)]
    student.requires_grad_()
    for normalize in NORMALIZE:
        (first, first_gradient), (second, second_gradient) = (rank[normalize] for rank in ranks)
        alone = FreeKDLoss(4, relation=None, normalize=normalize, mode='paper')(student, teacher)
        torch.testing.assert_close(first + second, alone.detach())
        wanted = torch.autograd.grad(alone, student)[0]
        torch.testing.assert_close(torch.cat((first_gradient, second_gradient)), wanted)


def test_standardised_features_with_bands_weighed_by_their_sizes_are_pkd():
    """Haar is orthonormal: the squared difference is the same in pixels and in bands."""
    student, teacher = torch.randn(2, 4, 16, 8) * 3 + 1, torch.randn(2, 4, 16, 8)

    def standardise(x):
        return (x - x.mean((0, 2, 3), keepdim=True)) / x.std((0, 2, 3), correction=0, keepdim=True)

    wanted = (standardise(student) - standardise(teacher)).square().mean()
    # The mean over the nine high bands is taken, of which each of level j has 1 / 4^j of the positions.
    sizes = [9 / 4**level for level in (1, 2, 3)]
    loss = FreeKDLoss(
        4,
        relation=None,
        normalize='feature',
        distance='l2',
        high_weight=sizes,
        low_weight=1 / 64,
        loss_weight=1.0,
        mode='paper',
    )
    torch.testing.assert_close(loss(student, teacher), wanted, rtol=2e-4, atol=0)
