"""WaveletLoss against its formula, written with whole bands, in value and gradient."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_checks import check_half_precision, check_memory_formats, within
from ranks import run_two_ranks

from freekd_mm.compat.versions import torch_at_least, zip_equal
from freekd_mm.frequency import dwt2d
from freekd_mm.losses import FreeKDLoss, FreeKDPlusLoss, WaveletLoss
from freekd_mm.losses.bands import loss as bands
from freekd_mm.prompts import PromptFile, save_prompt
from freekd_mm.registry import MODELS

SIZES = [(24, 17), (16, 16), (9, 10)]


def features(seed, sizes=SIZES, batch=2, channels=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, channels, *size, generator=generator, dtype=dtype) for size in sizes]


def prompt_path(folder, count=3, channels=5, levels=3):
    generator = torch.Generator().manual_seed(7)
    tokens = {i: torch.randn(1 + levels, 2, channels, generator=generator) for i in range(count)}
    file = PromptFile({f'neck[{level}]': value for level, value in tokens.items()}, levels=levels, num_tokens=2)
    return str(save_prompt(file, folder / 'prompt.pth')), tokens


def depth_of(size, levels, positions, images):
    depth = 0
    while depth < levels and images * math.prod(length // 2 ** (depth + 1) for length in size) >= max(positions, 1):
        depth += 1
    return depth


def formula(students, teachers, weights, levels=3, positions=16, tokens=None):
    """The mean over bands and channels of the squared difference of standardised high bands, level by level."""
    total = 0.0
    for index, (student, teacher) in enumerate(zip_equal(students, teachers)):
        depth = depth_of(student.shape[2:], levels, positions, len(student))
        if not depth:
            continue
        own, other = dwt2d(student, depth), dwt2d(teacher, depth)
        for level, (details, others) in enumerate(zip_equal(own.high, other.high)):
            mask = torch.ones_like(others[0][:, :1])
            if tokens is not None:
                found = torch.einsum('tc,nchw->nthw', tokens[index][1 + level].double(), sum(others)).sigmoid()
                mask = found.square().sum(1, keepdim=True)
                counted = mask[..., : student.shape[2] >> level + 1, : student.shape[3] >> level + 1]
                mask = mask / counted.mean((2, 3), keepdim=True)
            pairs = [[within(x, level + 1, student.shape[2:]) for x in pair] for pair in zip_equal(details, others)]
            for b, a in pairs:
                own_square, square = ((mask * x.square()).mean((0, 2, 3), keepdim=True) for x in (b, a))
                gap = b / (own_square + 1e-4 * square).sqrt() - a / (1.0001 * square).sqrt()
                total = total + weights[index] * (mask * gap.square()).mean() / (3 * depth)
    return total


def shares(sizes, power, positions=16, images=2):
    areas = [math.prod(size) ** power if depth_of(size, 3, positions, images) else 0 for size in sizes]
    return [area / sum(areas) for area in areas]


def same(loss, students, teachers, wanted):
    value = loss(students, teachers)
    torch.testing.assert_close(value, wanted, rtol=1e-9, atol=1e-12)
    gradients = torch.autograd.grad(value, students)
    for own, other in zip_equal(gradients, torch.autograd.grad(wanted, students)):
        torch.testing.assert_close(own, other, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize(('level_weights', 'power'), [('equal', 0.0), ('root', 0.5), ('area', 1.0)])
@pytest.mark.parametrize('prompt', [False, True])
def test_is_the_formula_in_value_and_gradient(tmp_path, level_weights, power, prompt):
    path, tokens = prompt_path(tmp_path) if prompt else (None, None)
    students, teachers = [level.requires_grad_() for level in features(0)], features(1)
    loss = WaveletLoss(5, level_weights=level_weights, prompt=path)
    same(loss, students, teachers, 2 * formula(students, teachers, shares(SIZES, power), tokens=tokens))


@settings(max_examples=30, deadline=None)
@given(
    batch=st.integers(1, 3),
    channels=st.integers(1, 4),
    height=st.integers(1, 21),
    width=st.integers(1, 21),
    levels=st.integers(1, 4),
    positions=st.sampled_from([0, 4, 16]),
    seed=st.integers(0, 99),
)
def test_any_size_and_depth(batch, channels, height, width, levels, positions, seed):
    sizes = [(height, width)]
    (student,), (teacher,) = features(seed, sizes, batch, channels), features(seed + 100, sizes, batch, channels)
    student.requires_grad_()
    loss = WaveletLoss(channels, levels=levels, min_positions=positions, loss_weight=1.0)
    value = loss(student, teacher)
    gradient = torch.autograd.grad(value, student)[0]
    if not depth_of(sizes[0], levels, positions, batch):
        assert value == 0
        assert not gradient.any()
        return
    wanted = formula([student], [teacher], [1.0], levels, positions)
    torch.testing.assert_close(value, wanted, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(gradient, torch.autograd.grad(wanted, student)[0], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize('size', [(24, 16), (25, 16), (13, 10), (5, 3), (1, 7)])
def test_a_mean_of_the_features_is_not_seen_at_any_size(size):
    """Zeros beyond the border would be an edge, as strong as the mean."""
    torch.manual_seed(0)
    teacher = torch.randn(4, 3, *size, dtype=torch.float64)
    student = (teacher + 5).requires_grad_()
    loss = WaveletLoss(3)
    value = loss((student,), (teacher + 2,))
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-9)
    assert student.grad.abs().max() < 1e-9
    other = loss((torch.randn_like(teacher) + 50,), (teacher + 50,))
    assert other > 1 or not depth_of(size, 3, 16, 4)


def test_numbers_weigh_the_levels():
    students, teachers = [level.requires_grad_() for level in features(0)], features(1)
    loss = WaveletLoss(5, level_weights=[2.0, 0.0, 0.5], loss_weight=3.0)
    same(loss, students, teachers, 3 * formula(students, teachers, [2 / 3, 0, 0.5 / 3]))
    assert sorted(loss.terms) == ['level0/high', 'level1/high', 'level2/high']
    assert loss.terms['level1/high'] == 0


def test_the_parts_add_up_and_a_small_level_is_left_out_once_and_aloud(monkeypatch):
    logged = []
    monkeypatch.setattr(bands, 'say', logged.append)
    sizes = [(32, 32), (8, 10), (6, 4)]
    students, teachers = [level.requires_grad_() for level in features(0, sizes)], features(1, sizes)
    loss = WaveletLoss(5, loss_weight=1.0)
    values = [loss(students, teachers) for _ in range(2)]
    assert logged == [
        'WaveletLoss: of 3 wavelet levels only 1 of level 1, 0 of level 2 are compared at this size, since every band '
        'should have 16 positions (min_positions) within the map'
    ]
    logged.clear()
    assert WaveletLoss(5, min_positions=0)(features(0, [(1, 64)]), features(1, [(1, 64)])) == 0
    assert 'should have 1 positions (min_positions) within the map' in logged[0]
    torch.testing.assert_close(sum(loss.terms.values()), values[1].detach())
    gradients = torch.autograd.grad(values[1], students)
    assert not gradients[2].any()
    assert gradients[1].any()
    assert not any(term.requires_grad for term in loss.terms.values())


@pytest.mark.parametrize(
    ('images', 'processes', 'depth'), [(1, 1, 0), (2, 1, 1), (1, 2, 1), (4, 1, 1), (16, 1, 2), (8, 2, 2), (64, 1, 2)]
)
def test_all_images_of_a_batch_count_towards_the_positions(monkeypatch, images, processes, depth):
    """6x6 features, as a picture of 192 pixels has at stride 32: 9 and 1 positions of their bands lie within them."""
    monkeypatch.setattr(bands, 'get_world_size', lambda: processes)
    x = torch.randn(images, 5, 6, 6)
    assert WaveletLoss(5)._depths([x]) == [depth]
    # Differences of single images are not standardised.
    assert FreeKDLoss(5)._depths([x]) == [0]


def test_a_band_of_two_numbers_would_take_the_loss():
    """What min_positions is for: two numbers divided by their deviation are a sign."""
    sizes = [(100, 84), (8, 10)]
    students, teachers = [level.requires_grad_() for level in features(0, sizes, 1, 8)], features(1, sizes, 1, 8)

    def share(positions):
        loss = WaveletLoss(8, level_weights='equal', min_positions=positions)
        energies = [g.square().sum() for g in torch.autograd.grad(loss(students, teachers), students)]
        return (energies[1] / sum(energies)).item()

    assert share(0) > 0.99
    # By their areas the small level has 1 % of the values.
    loss = WaveletLoss(8, level_weights='area')
    energies = [g.square().sum() for g in torch.autograd.grad(loss(students, teachers), students)]
    assert energies[1] / sum(energies) < 0.03


def test_the_scale_of_both_sides_is_free():
    students, teachers = features(0), features(1)
    value = WaveletLoss(5)(students, teachers)
    scaled = [1e3 * student for student in students], [1e-2 * teacher for teacher in teachers]
    torch.testing.assert_close(WaveletLoss(5)(*scaled), value, rtol=1e-3, atol=0)
    assert WaveletLoss(5)([t.clone() for t in teachers], teachers) < 1e-6


def test_a_second_backward_and_a_scaled_gradient_are_right():
    (student,), (teacher,) = features(0, SIZES[:1]), features(1, SIZES[:1])
    student.requires_grad_()
    value = WaveletLoss(5)(student, teacher)
    first = torch.autograd.grad(value, student, retain_graph=True)[0]
    second = torch.autograd.grad(value, student, torch.tensor(2.0))[0]
    torch.testing.assert_close(second, 2 * first)


def test_without_gradients_the_value_is_the_same():
    students, teachers = [level.requires_grad_() for level in features(0)], features(1)
    with torch.no_grad():
        value = WaveletLoss(5)(students, teachers)
    assert not value.requires_grad
    torch.testing.assert_close(value, WaveletLoss(5)(students, teachers).detach())


@pytest.mark.parametrize('kind', [WaveletLoss, FreeKDPlusLoss])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(kind, dtype):
    check_half_precision(kind(5), features(0), features(1), dtype)


@pytest.mark.parametrize('kind', [WaveletLoss, FreeKDPlusLoss])
def test_channels_last_and_non_contiguous_features_give_the_same(kind, tmp_path):
    check_memory_formats(kind(5, prompt=prompt_path(tmp_path)[0]), features(0), features(1))


@pytest.mark.parametrize('teacher', [torch.zeros(2, 5, 16, 16), torch.ones(2, 5, 16, 16), torch.zeros(0, 5, 16, 16)])
def test_constant_and_empty_features_say_nothing(teacher):
    student = torch.randn_like(teacher).requires_grad_()
    value = WaveletLoss(5)(student, teacher)
    value.backward()
    assert value == 0
    assert not student.grad.any()


def _two_ranks(rank, folder):
    case = torch.load(folder / 'case.pt')
    found = []
    for index, (student, teacher) in enumerate(case[rank]):
        loss = (WaveletLoss, FreeKDPlusLoss)[index % 2](4)
        student = student.clone().requires_grad_()
        value = loss(student, teacher)
        value.backward()
        # DDP divides the gradients by the number of processes.
        found.append((value.detach(), student.grad / 2))
    torch.save(found, folder / f'rank{rank}.pt')


def test_two_processes_compute_what_one_does(tmp_path):
    """Uneven batches, images of two sizes with other depths: the statistics are those of all images."""
    (student,), (teacher,) = features(0, [(27, 26)], 3, 4), features(1, [(27, 26)], 3, 4)
    small, large = ([x for side in (0, 1) for x in features(side, [size], 2, 4)] for size in ((10, 12), (27, 26)))
    pairs = [
        [(student[:1], teacher[:1])] * 2 + [tuple(small)] * 2,
        [(student[1:], teacher[1:])] * 2 + [tuple(large)] * 2,
    ]
    torch.save(pairs, tmp_path / 'case.pt')
    run_two_ranks(_two_ranks, tmp_path)
    ranks = [torch.load(tmp_path / f'rank{rank}.pt') for rank in range(2)]
    student.requires_grad_()
    for index, kind in enumerate((WaveletLoss, FreeKDPlusLoss)):
        alone = kind(4)(student, teacher)
        assert ranks[0][index][0] == ranks[1][index][0]
        torch.testing.assert_close(ranks[0][index][0], alone.detach())
        gradient = torch.cat([rank[index][1] for rank in ranks])
        torch.testing.assert_close(gradient, torch.autograd.grad(alone, student)[0])
    for index in (2, 3):
        assert all(torch.isfinite(rank[index][1]).all() for rank in ranks)


def test_is_built_from_a_config_copies_and_compiles(tmp_path):
    loss = MODELS.build(dict(type='freekd_mm.WaveletLoss', channels=5, prompt=prompt_path(tmp_path)[0]))
    assert not list(loss.parameters()), 'the prompt is frozen'
    twin = copy.deepcopy(loss)
    twin.load_state_dict(loss.state_dict())
    students, teachers = [level.requires_grad_() for level in features(0)], features(1)
    wanted = loss(students, teachers)
    compiled = [torch.compile(twin, backend='aot_eager')] if torch_at_least(2, 1) else []
    for other in (twin, *compiled):
        value = other(students, teachers)
        torch.testing.assert_close(value, wanted)
        pairs = zip_equal(*(torch.autograd.grad(v, students, retain_graph=True) for v in (value, wanted)))
        for own, mine in pairs:
            torch.testing.assert_close(own, mine)


@pytest.mark.parametrize(
    ('options', 'error', 'message'),
    [
        (dict(level_weights='areas'), ValueError, "level_weights should be one of .* mean 'area'"),
        (dict(level_weights=[1.0, -1.0]), ValueError, 'level_weights should be at least 0'),
        (dict(level_weights=1.0), ValueError, "level_weights should be one of 'equal', 'root', 'area', but got 1.0"),
        (dict(channels=5.0), TypeError, 'channels should be an integer, but got 5.0'),
        (dict(channels=None), TypeError, 'channels should be an integer, but got None'),
        (dict(min_positions=-1), ValueError, 'min_positions should be at least 0'),
        (dict(levels=0), ValueError, 'levels should be greater than 0'),
        (dict(channels='256'), TypeError, 'channels should be an integer'),
        (dict(prompt='no/such/file.pth'), FileNotFoundError, 'no/such/file.pth'),
    ],
)
def test_wrong_options_name_what_is_available(options, error, message):
    with pytest.raises(error, match=message):
        WaveletLoss(**{'channels': 5, **options})


def test_a_prompt_with_fewer_levels_than_the_loss(tmp_path):
    path, _ = prompt_path(tmp_path, levels=2)
    generator = dict(type='freekd_mm.PoIMaskGenerator', channels=5, prompt=path)
    with pytest.raises(ValueError, match='levels should be at most 2, as in the prompt file, but got 3'):
        WaveletLoss(5, prompt=generator)
    assert WaveletLoss(5, levels=1, prompt=generator)(features(0), features(1)) > 0


def test_features_that_do_not_fit_are_named():
    students, teachers = features(0), features(1)
    with pytest.raises(
        ValueError, match=r'channels should be .* one number or one per level, but got 7 .* \(2, 5, 24, 17\)'
    ):
        WaveletLoss(7)(students, teachers)
    with pytest.raises(ValueError, match=r'channels should be .* one number or one per level, but got \(5, 5\)'):
        WaveletLoss((5, 5))(students, teachers)
    with pytest.raises(ValueError, match="level 1 of the student should have the teacher's shape"):
        WaveletLoss(5)([students[0], students[0], students[2]], teachers)
    with pytest.raises(ValueError, match="'root', 'area' or one number for each of the 3 levels, but got"):
        WaveletLoss(5, level_weights=(1.0, 2.0))(students, teachers)
