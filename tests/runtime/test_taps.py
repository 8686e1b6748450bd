"""Taps: reading them, finding their modules, and recording what the modules return."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from freekd_mm.compat.versions import zip_equal
from freekd_mm.runtime.taps import Tap, TapRecorder, check_module, flatten, parse_taps


class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 2, 1)

    def forward(self, levels):
        return [self.conv(level) for level in levels], {'extra': levels[0]}


class Model(nn.Module):
    """Calls its head by the forward method, as detectors and segmenters do."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ReLU())
        self.neck = nn.Identity()
        self.head = Head()

    def forward(self, x):
        first = self.backbone(x)
        levels = self.neck((first, first[..., ::2, ::2]))
        return self.head.forward(levels)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Model()


def record(model, *texts, runs=1):
    taps = parse_taps(texts)
    recorder = TapRecorder(model, taps, 'student')
    with recorder:
        for _ in range(runs):
            output = model(torch.ones(1, 3, 8, 8))
    return recorder, recorder.levels(taps), output


@pytest.mark.parametrize('text', ['neck', 'neck[0]', 'neck[-1]', 'neck[1:4]', 'neck[:2]', 'neck[-2:]', 'a.b_1.c'])
def test_tap_reads_and_writes_itself(text):
    assert str(Tap.parse(text)) == text


@pytest.mark.parametrize('text', ['', 'neck[', 'neck[a]', 'neck[1:2:3]', '[0]', 'neck 0', None, 3])
def test_unreadable_tap(text):
    with pytest.raises(ValueError, match=r"tap should be like 'neck', 'neck\[1:4\]'"):
        Tap.parse(text)


def test_no_taps():
    with pytest.raises(ValueError, match='at least one module'):
        parse_taps([])


def test_unknown_module_names_what_is_there(model):
    message = r"tap 'backbone.nek' should be a module of the teacher, but 'backbone' has no 'nek'; available: 0, 1"
    with pytest.raises(ValueError, match=message):
        check_module(model, 'backbone.nek', 'teacher')
    with pytest.raises(
        ValueError, match=r"but Model has no 'nekc'; available: backbone, neck, head. Did you mean 'neck'"
    ):
        TapRecorder(model, parse_taps('nekc'), 'student')


def test_records_all_levels_in_order(model):
    _, levels, _ = record(model, 'neck')
    assert [tuple(level.shape) for level in levels] == [(1, 4, 4, 4), (1, 4, 2, 2)]


def test_index_slice_and_several_taps(model):
    _, levels, _ = record(model, 'neck[1]', 'neck[:1]', 'backbone.0')
    assert [tuple(level.shape[1:]) for level in levels] == [(4, 2, 2), (4, 4, 4), (4, 4, 4)]
    assert levels[2].min() < 0  # in front of the ReLU


def test_head_called_by_its_forward_method(model):
    """mmdet and mmseg do not run the hooks of their heads outside of training."""
    recorder, levels, output = record(model, 'head[0]')
    assert [level.shape[1] for level in levels] == [2, 2]
    assert all(level is expected for level, expected in zip_equal(levels, output[0]))
    assert recorder.counts() == {'head': 1}


def test_head_called_as_a_module_is_recorded_once(model):
    taps = parse_taps('head[0]')
    recorder = TapRecorder(model, taps, 'student')
    with recorder:
        model.head((torch.ones(1, 4, 2, 2),))
    assert recorder.counts() == {'head': 1}


def test_forward_is_left_as_it_was(model):
    def replaced(levels):
        return Head.forward(model.head, levels)

    model.neck.forward = wrapped = model.neck.forward
    record(model, 'head', 'neck')
    assert 'forward' not in model.head.__dict__
    assert model.neck.__dict__['forward'] is wrapped
    assert not model.head._forward_pre_hooks
    model.head.forward = replaced  # as mmengine's activation checkpointing does
    recorder, _, _ = record(model, 'head[0]')
    assert recorder.counts() == {'head': 1}
    assert model.head.forward is replaced


def test_forward_is_restored_after_an_error(model):
    recorder = TapRecorder(model, parse_taps('head'), 'student')
    with pytest.raises(RuntimeError), recorder:
        model(torch.ones(1, 5, 8, 8))
    assert 'forward' not in model.head.__dict__
    assert not model.head._forward_hooks


def test_module_that_runs_twice_gives_two_levels(model):
    recorder, levels, _ = record(model, 'neck[0]', runs=2)
    assert len(levels) == 2
    assert recorder.counts() == {'neck': 2}
    recorder.clear()
    assert recorder.counts() == {'neck': 0}


def test_nothing_is_recorded_outside(model):
    taps = parse_taps('neck')
    recorder = TapRecorder(model, taps, 'student')
    model(torch.ones(1, 3, 8, 8))
    with pytest.raises(RuntimeError, match="tap 'neck' of the student was not reached"):
        recorder.levels(taps)


def test_index_that_does_not_fit(model):
    with pytest.raises(ValueError, match=r"tap 'neck\[5\]' does not fit: the module returned 2 items"):
        record(model, 'neck[5]')


@pytest.mark.parametrize(
    ('output', 'kind'), [(torch.ones(4, 2, 8, 8), r"Tensor; leave .* as in 'neck\.0'"), ({'a': torch.ones(1)}, 'dict')]
)
@pytest.mark.parametrize('index', ['0', ':2'])
def test_index_into_a_tensor_or_a_dict(output, kind, index):
    with pytest.raises(ValueError, match=rf"tap 'neck\[{index}\]' does not fit: the module returned a {kind}"):
        Tap.parse(f'neck[{index}]').select(output)


def test_output_that_is_changed_in_place_afterwards(model):
    model.backbone[1].inplace = True
    with pytest.raises(ValueError, match=r"tap 'backbone\.0' of the student should keep its values.*; tap the module"):
        record(model, 'backbone.1', 'backbone.0')
    _, levels, _ = record(model, 'backbone.1', 'head[0]')  # what the change returns, and what nothing changes
    assert levels[0].min() == 0
    with torch.inference_mode():  # whose tensors do not count their changes
        record(model, 'backbone.0')


def test_nested_outputs_are_flattened():
    a, b, c = torch.zeros(1), torch.zeros(2), torch.zeros(3)
    assert flatten(([a], {'x': b, 'y': (c,)}), Tap('neck')) == [a, b, c]
    with pytest.raises(TypeError, match="tap 'head' should give tensors, but the module returned a str"):
        flatten(['text'], Tap('head'))


def test_copy_records_itself(model):
    """A copy (EMA) has its own recorder: running it leaves the first one alone."""
    taps = parse_taps('head[0]')
    model.recorder = TapRecorder(model, taps, 'student')
    other = copy.deepcopy(model)
    with other.recorder:
        other(torch.ones(1, 3, 8, 8))
    assert other.recorder.counts() == {'head': 1}
    assert model.recorder.counts() == {'head': 0}
    assert other.recorder.model is other


def test_a_module_that_was_replaced_is_recorded(model):
    """The runner converts SyncBN after the model is built, which puts new modules in place."""
    recorder = TapRecorder(model, [Tap('backbone.1')], 'student')
    model.backbone[1] = nn.Sigmoid()
    with recorder:
        model(torch.zeros(1, 3, 8, 8))
    assert recorder.levels([Tap('backbone.1')])[0].min() > 0
