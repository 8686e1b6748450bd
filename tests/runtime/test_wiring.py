"""Which levels belong together, and what makes them comparable."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from freekd_mm.compat.versions import zip_equal
from freekd_mm.runtime.wiring import alignment, as_maps, match_levels, resize, tokens_to_map
from freekd_mm.text import table

PYRAMID = ((16, 32, 32), (16, 16, 16), (16, 8, 8), (16, 4, 4), (16, 2, 2))


def test_levels_of_the_same_resolution_are_paired():
    assert match_levels(PYRAMID[1:4], PYRAMID, 'kd') == ((0, 1), (1, 2), (2, 3))
    assert match_levels(PYRAMID, PYRAMID[2:], 'kd') == ((2, 0), (3, 1), (4, 2))
    # As many levels, of other strides: CondInst begins with stride 8, Cascade R-CNN with 4.
    assert match_levels(PYRAMID[1:], PYRAMID[:4], 'kd') == ((0, 1), (1, 2), (2, 3))


def test_as_many_levels_are_paired_in_order_where_resolutions_do_not_say_it():
    in_order = ((0, 0), (1, 1), (2, 2))
    assert match_levels(PYRAMID[:3], ((8, 31, 31), (8, 15, 15), (8, 7, 7)), 'kd') == in_order
    assert match_levels(PYRAMID[:3], ((8, 32, 32), (8, 31, 31), (8, 16, 16)), 'kd') == in_order
    # A dilated backbone has levels of one resolution.
    assert match_levels(PYRAMID[:3], ((8, 32, 32), (8, 16, 16), (8, 16, 16)), 'kd') == in_order
    # The user named them.
    assert match_levels(PYRAMID[:3], PYRAMID[1:4], 'kd', chosen=True) == in_order


@pytest.mark.parametrize('students', [((8, 31, 31), (8, 15, 15)), ((8, 16, 16), (8, 16, 16))])
def test_levels_that_cannot_be_paired(students):
    with pytest.raises(ValueError, match=r"distill 'kd': the student has 2 levels \(8x.*and the teacher 5 \(16x32x32"):
        match_levels(students, PYRAMID, 'kd')


def test_logits_of_other_classes():
    with pytest.raises(ValueError, match="distill 'kd': logits of student and teacher should have the same"):
        match_levels(((80, 8, 8),), ((20, 8, 8),), 'kd', logits=True)


@pytest.mark.parametrize('image', [(64, 64), (64, 96), (96, 64), (100, 168), (33, 65), (224, 224)])
@pytest.mark.parametrize('stride', [4, 8, 16])
@pytest.mark.parametrize('extra', [0, 1])
def test_tokens_become_the_map_they_were(image, stride, extra):
    height, width = (-(-side // stride) for side in image)
    feature = torch.randn(2, 5, height, width)
    tokens = feature.flatten(2).transpose(1, 2)
    tokens = torch.cat([torch.zeros(2, extra, 5), tokens], 1)
    assert torch.equal(tokens_to_map(tokens, image), feature)


def test_tokens_that_fill_no_grid():
    with pytest.raises(ValueError, match='23 tokens should fill a grid of the shape of the 64x64 image'):
        tokens_to_map(torch.zeros(1, 23, 4), (64, 64))


def test_maps_and_vectors_stay():
    levels = (torch.zeros(1, 2, 3, 4), torch.zeros(1, 7))
    assert all(a is b for a, b in zip_equal(as_maps(levels, (8, 8)), levels))


def test_resize():
    x = torch.randn(1, 2, 8, 8)
    assert resize(x, (8, 8)) is x
    assert torch.equal(resize(x, (4, 4)), F.avg_pool2d(x, 2))
    assert torch.equal(resize(x, (16, 12)), F.interpolate(x, (16, 12), mode='bilinear', align_corners=False))
    assert resize(x, (16, 4)).shape == (1, 2, 16, 4)


def test_alignment_in_words():
    students, teachers = ((4, 8, 8), (6, 4, 4), (6, 4, 4), (6,)), ((6, 8, 8), (6, 8, 8), (6, 2, 2), (6,))
    said = [alignment(*shapes) for shapes in zip_equal(students, teachers)]
    assert said == ['projected 4 -> 6', 'upsampled', 'averaged down', 'as it is']


def test_table_is_aligned():
    text = table([['a', 'bbb'], ['cc', 'd']], ('x', 'y'))
    assert text == 'x   y\na   bbb\ncc  d'
