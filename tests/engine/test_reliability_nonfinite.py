"""A loss or gradient that is not finite: named to the image, and never let into the weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS, MODELS, OPTIM_WRAPPERS
from torch_versions import newer_torch
from toy_runs import Stop, ToyImages, ToyModel, changed, last_state, toy_config, toy_run

from freekd_mm.compat.versions import zip_equal
from freekd_mm.losses.base import DistillLoss

SKIP = {'reliability': {'nonfinite': 'skip'}}


@pytest.fixture(autouse=True)
def _quick(quick_disk):
    pass


@MODELS.register_module(force=True)
class RootLoss(DistillLoss):
    """Finite, with a gradient that is not."""

    def compute(self, students, teachers):
        return sum((student * 0).sum().sqrt() for student in students)


@MODELS.register_module(force=True)
class Damaged(ToyModel):
    """Its file is sound, and a weight becomes infinite when it runs, as an overflow does."""

    def __init__(self, weight):
        super().__init__()
        self.weight = weight
        self.backbone.register_forward_pre_hook(self._damage)

    def _damage(self, *_):
        self.get_parameter(self.weight).data.view(-1)[0] = torch.inf


@HOOKS.register_module(force=True)
class Watch(Hook):
    """Keeps the weights and statistics before the first and after every iteration, the model, and the other hooks."""

    priority = 'LOWEST'
    states: list = []  # noqa: RUF012
    start: dict = {}  # noqa: RUF012
    hooks: list = []  # noqa: RUF012
    model = None
    spoil = -1

    def __init__(self, spoil=None):
        Watch.states = []
        self.spoil = spoil

    @staticmethod
    def state():
        return {key: value.clone() for key, value in Watch.model.state_dict().items()}

    def before_train(self, runner):
        Watch.model, Watch.hooks = runner.model, [type(hook).__name__ for hook in runner.hooks]
        Watch.start = self.state()

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.states.append(self.state())
        if self.spoil == runner.iter + 1:
            runner.model.backbone[0].weight.data[0, 0, 0, 0] = float('inf')


def distilled(folder, loss, weight=None, taps=('backbone', 'head'), **changes):
    """Returns a toy config whose student learns from a toy teacher.

    Args:
        folder: For the teacher's weights.
        loss: Config of the loss.
        weight: A weight of the teacher that becomes infinite.
        taps: What is compared.
    """
    torch.manual_seed(1)
    teacher = ToyModel()
    folder.mkdir(exist_ok=True)
    torch.save({'state_dict': teacher.state_dict()}, folder / 'teacher.pth')
    model = {
        'type': 'freekd_mm.DistilledModel',
        'architecture': {'type': 'ToyModel'},
        'teacher': {
            'model': {'type': 'Damaged', 'weight': weight} if weight else {'type': 'ToyModel'},
            'checkpoint': str(folder / 'teacher.pth'),
        },
        'distill': {'test': {'student': list(taps), 'loss': loss}},
        'probe_size': (8, 8),
    }
    return toy_config(folder, model=model, **changes)


def fails(config, *hooks):
    """Returns the text of the error, and checks that no weight is damaged, or changed by the last step."""
    with pytest.raises(FloatingPointError) as caught:
        toy_run(config, {'type': 'Watch'}, *hooks)
    before, end = [Watch.start, *Watch.states][-1], Watch.state()
    for state in (*Watch.states, end):
        assert is_finite(state)
    assert all(torch.equal(before[key], end[key]) for key, _ in Watch.model.named_parameters())
    return str(caught.value)


def is_finite(state):
    return all(bool(torch.isfinite(value).all()) for value in state.values())


def bad_images(*indices):
    config = {'type': 'ToyImages', 'bad': indices}
    loader = toy_config(Path('x'))['train_dataloader']
    return {**loader, 'dataset': config}


FREEKD = {'type': 'freekd_mm.FreeKDLoss', 'channels': [4, 1], 'levels': 1, 'min_positions': 0, 'relation': None}


def test_an_image(tmp_path):
    """Sample 7 is in the third batch of the first epoch or before: the text says where."""
    text = fails(distilled(tmp_path, FREEKD, train_dataloader=bad_images(7)))
    assert text.startswith('Iteration ')
    assert "the student's own loss_toy is not finite" in text
    assert 'the input is not finite for /data/7.png;' in text
    assert 'Images of the batch: ' in text
    assert text.count('/data/') > 4
    assert 'No weight was changed.' in text
    assert "reliability = dict(nonfinite='skip')" in text


def test_level_and_band_and_teacher(tmp_path):
    """The teacher's head is damaged, its backbone is sound."""
    text = fails(distilled(tmp_path, FREEKD, 'head.bias'))
    assert text.startswith('Iteration 1: ')
    assert "the loss of distill 'test' (FreeKDLoss) is not finite at level 1, part all;" in text
    assert "the teacher's 'head' is not finite for /data/" in text
    assert 'level 0' not in text
    assert 'backbone' not in text
    assert 'own' not in text


def test_every_level(tmp_path):
    text = fails(distilled(tmp_path, {'type': 'freekd_mm.FeatureMSELoss'}, 'backbone.0.bias'))
    assert 'FeatureMSELoss) is not finite at level 0, part mse, level 1, part mse' in text
    assert "the teacher's 'backbone' is not finite" in text
    assert "the teacher's 'head' is not finite" in text


def test_one_of_two_teachers(tmp_path):
    config = distilled(tmp_path, {'type': 'freekd_mm.FeatureMSELoss'}, 'backbone.0.bias')
    damaged = {**config['model']['teacher'], 'name': 'second'}
    config['model']['teacher'] = [{**damaged, 'name': 'first', 'model': {'type': 'ToyModel'}}, damaged]
    config['model']['distill']['more'] = {**config['model']['distill']['test'], 'of': 'second'}
    text = fails(config)
    assert "the loss of distill 'more'" in text
    assert "the teacher second's 'backbone' is not finite" in text
    assert 'first' not in text


def test_the_student(tmp_path):
    """Something damaged the weights themselves: then they are named."""
    config = distilled(tmp_path, FREEKD)
    with pytest.raises(FloatingPointError, match=r"^Iteration 6: .*the student's 'backbone' is not finite") as caught:
        toy_run(config, {'type': 'Watch', 'spoil': 5})
    assert "the teacher's" not in str(caught.value)


def test_a_gradient_alone(tmp_path):
    text = fails(distilled(tmp_path, {'type': 'RootLoss'}))
    assert text.startswith('Iteration 1: the losses are finite, but the gradient is not at backbone.0.weight')


def test_without_distillation(tmp_path):
    text = fails(toy_config(tmp_path, train_dataloader=bad_images(3)))
    assert 'own loss_toy is not finite; the input is not finite for /data/3.png' in text


def test_skipped_steps_change_nothing(tmp_path, caplog):
    """Sample 7 comes once in each of the four epochs."""
    config = distilled(tmp_path, FREEKD, train_dataloader=bad_images(7), **SKIP)
    printed = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('freekd_mm.engine.nonfinite.warn', printed.append)
        toy_run(config, {'type': 'Watch'})
    assert len(printed) == 4
    assert all(text.endswith('The step is skipped.') and '/data/7.png' in text for text in printed)
    skipped = [int(text.split()[1].rstrip(':')) - 1 for text in printed]
    assert len(Watch.states) == 12
    for iteration, (before, state) in enumerate(zip_equal([Watch.start, *Watch.states[:-1]], Watch.states)):
        assert is_finite(state)
        moved = {key for key, value in state.items() if not torch.equal(value, before[key])}
        if iteration in skipped:
            assert moved == {'distillation._extra_state'}
        else:
            assert moved >= {'backbone.0.weight', 'head.weight', 'backbone.1.running_mean'}


def test_skipping_resumes_exactly(tmp_path):
    changes = {'train_dataloader': bad_images(7), **SKIP}
    toy_run(distilled(tmp_path / 'whole', FREEKD, **changes))
    config = distilled(tmp_path / 'stopped', FREEKD, **changes)
    with pytest.raises(Stop):
        toy_run(config, {'type': 'ToyStop', 'behind': 7})
    toy_run(config, resume='auto')
    assert not changed(last_state(tmp_path / 'whole' / 'work'), last_state(config['work_dir']))


def test_too_many_in_a_row(tmp_path):
    changes = {'reliability': {'nonfinite': 'skip', 'patience': 3}}
    text = fails(distilled(tmp_path, FREEKD, 'head.bias', **changes))
    assert text.startswith('Iteration 4: ')
    assert 'It happened 4 times in a row.' in text


def test_it_can_be_ignored(tmp_path):
    changes = {'reliability': {'nonfinite': 'ignore'}}
    toy_run(distilled(tmp_path, {'type': 'freekd_mm.FeatureMSELoss'}, 'head.bias', **changes), {'type': 'Watch'})
    assert not torch.isfinite(Watch.states[-1]['backbone.0.weight']).all()


@MODELS.register_module(force=True)
class HugeModel(ToyModel):
    """Gradients whose squares overflow, and they do not."""

    def loss(self, inputs, data_samples=None):
        losses = super().loss(inputs, data_samples)
        return {'loss_toy': losses['loss_toy'] * 1e25}


def test_huge_gradients_are_finite(tmp_path):
    sgd = {'type': 'OptimWrapper', 'optimizer': {'type': 'SGD', 'lr': 1e-30}}
    toy_run(toy_config(tmp_path, model={'type': 'HugeModel'}, optim_wrapper=sgd), {'type': 'Watch'})
    assert is_finite(Watch.states[-1])
    assert not torch.equal(Watch.start['head.weight'], Watch.states[-1]['head.weight'])


@OPTIM_WRAPPERS.register_module(force=True)
class ScaledWrapper(OptimWrapper):
    """mmengine's AmpOptimWrapper, which asks for a GPU, as far as the loss scale goes."""

    scales: list = []  # noqa: RUF012

    def __init__(self, init_scale, **kwargs):
        super().__init__(**kwargs)
        self.loss_scaler = torch.amp.GradScaler('cpu', init_scale=init_scale)
        ScaledWrapper.scales = []

    def backward(self, loss, **kwargs):
        self.loss_scaler.scale(loss).backward(**kwargs)
        self._inner_count += 1

    def step(self, **kwargs):
        self.scales.append(self.loss_scaler.get_scale())
        self.loss_scaler.step(self.optimizer, **kwargs)
        self.loss_scaler.update()


def scaled(init_scale):
    return {'type': 'ScaledWrapper', 'init_scale': init_scale, 'optimizer': {'type': 'SGD', 'lr': 0.01}}


@newer_torch('loss scale on a CPU', (2, 3))
def test_an_overflow_of_mixed_precision_is_no_error(tmp_path):
    """The gradients overflow until the scale has come down; the steps behind that count."""
    toy_run(distilled(tmp_path, FREEKD, optim_wrapper=scaled(2.0**127)), {'type': 'Watch'})
    first, last = ScaledWrapper.scales[0], ScaledWrapper.scales[-1]
    assert first > last
    assert not torch.equal(Watch.states[0]['head.weight'], Watch.states[-1]['head.weight'])
    assert is_finite(Watch.states[-1])


@newer_torch('loss scale on a CPU', (2, 3))
def test_a_loss_that_stays_infinite_is_one(tmp_path):
    changes = {'reliability': {'patience': 5}, 'optim_wrapper': scaled(1024.0)}
    text = fails(distilled(tmp_path, FREEKD, 'head.bias', **changes))
    assert text.startswith('Iteration 6: ')
    assert 'It happened 6 times in a row.' in text
    assert 'train in full precision' in text


@newer_torch('loss scale on a CPU', (2, 3))
def test_gradients_that_stay_infinite_are_one(tmp_path):
    """The scaler would leave out each step, to the end of the run, and say nothing."""
    changes = {'reliability': {'patience': 5}, 'optim_wrapper': scaled(1024.0)}
    text = fails(distilled(tmp_path, {'type': 'RootLoss'}, **changes))
    assert text.startswith('Iteration 6: the losses are finite, but the gradient is not at backbone.0.weight')
    assert 'It happened 6 times in a row.' in text


def test_a_skipped_step_of_several_batches_changes_nothing(tmp_path):
    """The first of two batches is the bad one: the norms have seen it before the step is left out."""
    wrapper = {'type': 'OptimWrapper', 'optimizer': {'type': 'SGD', 'lr': 0.01}, 'accumulative_counts': 2}
    loader = {**bad_images(0), 'sampler': {'type': 'DefaultSampler', 'shuffle': False}}
    toy_run(toy_config(tmp_path, train_dataloader=loader, optim_wrapper=wrapper, **SKIP), {'type': 'Watch'})
    assert not torch.isfinite(Watch.states[0]['backbone.1.running_mean']).all()
    assert torch.isfinite(Watch.states[1]['backbone.1.running_mean']).all()


@newer_torch('loss scale on a CPU', (2, 3))
def test_one_overflow_of_the_loss_is_none(tmp_path):
    """A batch overflows in the forward pass: the scaler leaves the step out, the norms are put back."""
    changes = {'train_dataloader': bad_images(7), 'optim_wrapper': scaled(1024.0)}
    toy_run(distilled(tmp_path, FREEKD, **changes), {'type': 'Watch'})
    assert is_finite(Watch.states[-1])


def test_a_hook_of_the_config_counts(tmp_path):
    """It works in any runner, and is not added twice."""
    hook = {'type': 'freekd_mm.NonFiniteHook', 'policy': 'skip'}
    toy_run(toy_config(tmp_path, train_dataloader=bad_images(3)), hook, {'type': 'Watch'})
    assert Watch.hooks.count('NonFiniteHook') == 1
    assert len(Watch.states) == 12
    assert all(map(is_finite, Watch.states))


def test_one_hole_in_the_data_set(tmp_path):
    assert not torch.isfinite(ToyImages(bad=(3,))[3]['inputs']).all()
