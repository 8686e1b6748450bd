"""How hard an entry pulls: measured against autograd, the same everywhere, and held by ``weight='auto'``."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import pytest
import tiny_configs
import torch
from distill_cases import L2, build, det_samples, distilled, images, total
from ranks import run_two_ranks
from torch.utils.checkpoint import checkpoint

from freekd_mm.runtime import distillation as distillation_module
from freekd_mm.runtime.pull import EVERY, FIRST, SMOOTHING, Pull, is_due

STUDENT = tiny_configs.detector(Path('.'))['model']
TEACHER = {**tiny_configs.detector(Path('.'), head='gfl', width=16, channels=24)['model'], '_scope_': 'mmdet'}


def student(weight=1.0, loss_weight=1.0, **options):
    distill = {
        'kd': {
            'student': 'neck',
            'loss': {'type': 'freekd_mm.FeatureMSELoss', 'loss_weight': loss_weight},
            'weight': weight,
        }
    }
    torch.manual_seed(0)
    model = build(distilled({'model': STUDENT}, {'model': TEACHER, 'allow_random': True}, distill, **options)['model'])
    model.init_weights()
    return model.train()


def train(model, steps, start=0):
    """Takes steps of SGD; returns the logged pulls."""
    optimizer = torch.optim.SGD([value for value in model.parameters() if value.requires_grad], lr=1e-3)
    pulls = []
    for step in range(start, start + steps):
        losses = model.loss(images(2, seed=step), det_samples(2))
        optimizer.zero_grad()
        total(losses).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        pulls.append(losses['distill.kd.pull'].item())
    return pulls


def two_losses(own, task):
    """Returns features and two losses with gradients of these norms."""
    level = torch.zeros(4, requires_grad=True)
    return [level], own / 2 * level.sum(), task / 2 * level.sum()


def test_the_ratio_is_that_of_the_gradients_at_the_taps():
    model = student(weight=0.5)
    kept = []
    model.neck.register_forward_hook(lambda module, args, output: kept.append(output))
    losses = model.loss(images(2), det_samples(2))
    own = losses['distill.loss_kd']
    task = total({name: value for name, value in losses.items() if not name.startswith('distill.')})
    norms = []
    for loss in (own, task):
        for level in kept[0]:
            level.retain_grad()
            level.grad = None
        loss.backward(retain_graph=True)
        norms.append(math.sqrt(sum(float(level.grad.square().sum()) for level in kept[0])))
    assert losses['distill.kd.pull'].item() == pytest.approx(norms[0] / norms[1], rel=1e-4)
    assert model.distillation.entry('kd').pull.ratio == pytest.approx(2 * norms[0] / norms[1], rel=1e-4)


@pytest.mark.parametrize(('weight', 'target'), [('auto', 1.0), ('auto:0.3', 0.3), ('auto:3e-1', 0.3), ('auto:1.', 1.0)])
def test_auto_holds_its_ratio_from_the_first_step(weight, target):
    pulls = train(student(weight), 3)
    assert pulls == pytest.approx([target] * 3, rel=1e-5)


def test_a_loss_a_thousand_times_as_large_trains_the_same_with_auto():
    models = student('auto'), student('auto', loss_weight=1000.0)
    for model in models:
        train(model, 4)
    for one, other in zip(*(model.parameters() for model in models)):
        torch.testing.assert_close(one, other)
    plain = student(1.0, loss_weight=1000.0)
    train(plain, 4)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(plain.neck.state_dict(), models[0].neck.state_dict())


def test_measuring_changes_nothing(monkeypatch):
    measured = student()
    train(measured, 2)
    monkeypatch.setattr(distillation_module, 'is_due', lambda steps: False)
    silent = student()
    optimizer = torch.optim.SGD([value for value in silent.parameters() if value.requires_grad], lr=1e-3)
    for step in range(2):
        losses = silent.loss(images(2, seed=step), det_samples(2))
        assert 'distill.kd.pull' not in losses
        optimizer.zero_grad()
        total(losses).backward()
        torch.nn.utils.clip_grad_norm_(silent.parameters(), 1.0)
        optimizer.step()
    for one, other in zip(measured.parameters(), silent.parameters()):
        assert torch.equal(one, other)


def test_a_resumed_training_continues_with_the_same_weight():
    whole = student('auto')
    train(whole, 4)
    first = student('auto')
    train(first, 2)
    resumed = student('auto')
    resumed.load_state_dict(first.state_dict())
    train(resumed, 2, start=2)
    assert resumed.distillation.entry('kd').pull.log_ratio == whole.distillation.entry('kd').pull.log_ratio
    for one, other in zip(whole.parameters(), resumed.parameters()):
        assert torch.equal(one, other)


def test_pulls_belong_to_the_entries_of_their_names():
    names = ('b', 'c', 'a'), ('a', 'd', 'b')
    first, second = (
        build(
            distilled(
                {'model': STUDENT},
                {'model': TEACHER, 'allow_random': True},
                {name: {'loss': L2, 'weight': 'auto'} for name in own},
            )['model']
        ).distillation
        for own in names
    )
    for number, entry in enumerate(first.entries.values(), 1):
        entry.pull.count, entry.pull.log_ratio = number, -float(number)
    first.steps = 7
    second.set_extra_state(first.get_extra_state())
    assert second.steps == 7
    pulls = {name: (entry.pull.count, entry.pull.log_ratio) for name, entry in second.entries.items()}
    assert pulls == {'a': (3, -3.0), 'd': (0, 0.0), 'b': (1, -1.0)}
    assert second.entry('d').pull.waiting


def test_later_measurements_are_seldom_and_smoothed():
    assert [step for step in range(2 * EVERY + 1) if is_due(step)] == [*range(FIRST), EVERY, 2 * EVERY]
    pull = Pull('kd', 1.0)
    for ratio in (100.0, 1.0):
        levels, own, task = two_losses(ratio, 1.0)
        pull.measure(own, task, levels)
    # The mean of the logarithms of the first two.
    assert pull.ratio == pytest.approx(10.0)
    for _ in range(30):
        levels, own, task = two_losses(1.0, 1.0)
        pull.measure(own, task, levels)
    assert math.log(pull.ratio) == pytest.approx(0, abs=1e-3)
    levels, own, task = two_losses(16.0, 1.0)
    pull.measure(own, task, levels)
    assert pull.ratio == pytest.approx(16**SMOOTHING, rel=1e-3)


@pytest.mark.parametrize(
    ('weight', 'ratio', 'words'),
    [(1.0, 546.0, 'is too strong: try weight=0.0018'), (2.0, 0.005, 'is too weak: try weight=2e+02'),
     (1.0, 2.0, None), (0.01, 200.0, None), ('auto', 546.0, None)],
)  # fmt: skip
def test_it_warns_of_what_is_too_hard_or_too_weak(monkeypatch, weight, ratio, words):
    said = []
    monkeypatch.setattr('freekd_mm.log.print_log', lambda text, logger, level=logging.INFO: said.append((level, text)))
    pull = Pull('cwd', weight)
    for _ in range(FIRST + 3):
        levels, own, task = two_losses(ratio, 1.0)
        pull.measure(own, task, levels)
    ((level, text),) = said
    assert level == (logging.WARNING if words else logging.INFO)
    assert (words or "distill 'cwd' pulls") in text


def test_what_cannot_be_measured_is_left_out_and_refused_for_auto():
    level = torch.ones(2, requires_grad=True)
    lonely = torch.zeros((), requires_grad=True)
    # A reentrant checkpoint, as mmcv's models use them.
    task = checkpoint(lambda x: x.square(), level, use_reentrant=True).sum()
    for other in (lonely, task):
        pull = Pull('kd', 1.0)
        pull.measure(level.sum(), other, [level])
        assert (pull.off, pull.count, pull.weight) == (True, 0, 1.0)
        with pytest.raises(ValueError, match="weight='auto' needs the pull"):
            Pull('kd', 'auto').measure(level.sum(), other, [level])
    with pytest.raises(ValueError, match="the student's own losses do not pull there"):
        train(student('auto', task_loss=False), 1)


def test_a_batch_in_which_the_task_says_nothing_is_left_out():
    pull = Pull('kd', 'auto')
    for task in (0.0, 2.0):
        levels, own, other = two_losses(4.0, task)
        pull.measure(own, other, levels)
    assert (pull.off, pull.count, pull.ratio) == (False, 1, pytest.approx(2.0))


@pytest.mark.parametrize('weight', ['automatic', 'auto:-1', 'auto:nan', 'auto:x', 'auto:', 'auto:0', 'auto:inf'])
def test_mistakes_in_a_weight_are_named(weight):
    with pytest.raises(ValueError, match=f"weight of distill 'kd' should be a number, 'auto'.*but got '{weight}'"):
        Pull('kd', weight)


def measure_on(rank: int, folder: Path) -> None:
    pull = Pull('kd', 'auto')
    # Norms 3 and 4 of the loss, 1 and 1 of the task: the square root of 25 / 2.
    levels, own, task = two_losses((3.0, 4.0)[rank], 1.0)
    pull.measure(own, task, levels)
    torch.save(torch.tensor(pull.log_ratio, dtype=torch.float64), folder / f'{rank}.pth')


def test_two_processes_agree(tmp_path):
    run_two_ranks(measure_on, tmp_path)
    first, second = (torch.load(tmp_path / f'{rank}.pth', weights_only=True).item() for rank in range(2))
    assert first == second == pytest.approx(0.5 * math.log(12.5))
