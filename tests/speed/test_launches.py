"""Everything that a step runs, on an accelerator that is not there: right device, no waiting, few launches."""

from __future__ import annotations

import pytest
import torch

from freekd_mm.connectors.fam import FAMConnector
from freekd_mm.connectors.review import FAMReviewConnector
from freekd_mm.losses import LogitKLLoss
from freekd_mm.prompts import FrequencyPrompt
from speed.accelerator import NAME, accelerator, apart, available, count, move
from speed.launches import TARGETS, counted, has_triton
from speed.loss import QUICK_SHAPES, SHAPES
from speed.pair import STUDENT, TEACHER, config_of, distilled

pytestmark = pytest.mark.skipif(not available(), reason='this PyTorch cannot register a device in Python')

#: Launches of two small levels, forward and backward, as they were counted with PyTorch 2.13.
LOSSES = {
    'plain MSE': 20,
    'WaveletLoss': 65,
    'WaveletLoss, Triton': 30,
    'WaveletLoss, masks': 155,
    'WaveletLoss, masks, Triton': 77,
    'FreeKDLoss, paper': 240,
    'FreeKDLoss, paper, no relation': 86,
    'FreeKDLoss, code': 125,
    'FreeKDPlusLoss, masks': 208,
    'DCTAttentionLoss': 242,
    'FiGKDLoss, 80 classes': 77,
    'FAM and MSE': 108,
}
OTHERS = {
    'FAM': 111,
    'FAM, depthwise': 101,
    'review': 286,
    'review, code': 289,
    'prompt, paper': 336,
    'prompt, code': 236,
    'prompt, selective': 357,
    'KL': 36,
}


def test_this_process_does_not_get_the_device():
    def uses_it():
        with accelerator() as device:
            return torch.empty(3, device=device).device.type

    assert apart(uses_it)() == NAME
    assert torch._C._get_privateuse1_backend_name() != NAME
    with pytest.raises(RuntimeError, match='ZeroDivisionError'):
        apart(lambda: 1 / 0)()


def test_wavelet_loss_keeps_its_targets_at_the_size_of_coco():
    found = counted(SHAPES, 256, list(TARGETS))
    assert found.keys() == {name for name in TARGETS if has_triton() or 'Triton' not in name}
    for name, (launches, size) in found.items():
        kernels, traffic, memory = TARGETS[name]
        assert launches.kernels <= kernels
        assert launches.bytes <= traffic * size
        assert launches.peak <= memory * size


def test_losses_launch_no_more_than_they_did():
    found = {name: launches.kernels for name, (launches, _) in counted(QUICK_SHAPES, 16).items()}
    assert found.keys() == {name for name in LOSSES if has_triton() or 'Triton' not in name}
    assert {name: number for name, number in found.items() if number > 1.1 * LOSSES[name]} == {}


def parts():
    """Connectors, a prompt of each kind, and a loss on logits, with what they take."""
    levels = [(2, 16, *shape) for shape in QUICK_SHAPES]
    made = {
        'FAM': (FAMConnector(16, 16, num_levels=2), levels),
        'FAM, depthwise': (FAMConnector(16, 16, num_levels=2, mode='depthwise'), levels),
        'review': (FAMReviewConnector(16, 16, num_levels=2), levels),
        'review, code': (FAMReviewConnector(16, 16, num_levels=2, variant='code'), levels),
    }
    for mode in ('paper', 'code', 'selective'):
        made[f'prompt, {mode}'] = FrequencyPrompt(16, mode), levels[0]
    made['KL'] = LogitKLLoss(), (levels[0], levels[0])
    return made


def given(shapes, device):
    if isinstance(shapes[0], int):
        return torch.empty(shapes, device=device, requires_grad=True)
    return tuple(torch.empty(shape, device=device, requires_grad=True) for shape in shapes)


def total(found):
    """The sum of all that is returned, to go back from."""
    if isinstance(found, torch.Tensor):
        return found.sum()
    return sum(total(part) for part in found if isinstance(part, (torch.Tensor, tuple, list)))


@apart
def test_connectors_and_prompts_launch_no_more_than_they_did():
    found = {}
    for name, (module, shapes) in parts().items():
        with accelerator() as device:
            inputs = given(shapes, device)
            called = move(module, device) if name != 'KL' else lambda pair, loss=module: loss(*pair)
            if name.startswith('prompt'):  # the masks are not trained
                called = lambda x, module=called: module(x)[:2]  # noqa: E731
            launches = count(lambda called=called, inputs=inputs: total(called(inputs)).backward())
            found[name] = launches.kernels
    assert found.keys() == OTHERS.keys()
    assert {name: number for name, number in found.items() if number > 1.1 * OTHERS[name]} == {}


@apart
def test_a_whole_step_of_the_distillation_stays_on_the_device_and_never_waits():
    """The pull is measured in some steps and read by the processor there; this is a step between them."""
    student, teacher = config_of(STUDENT, quick=True), config_of(TEACHER, quick=True)
    model = distilled(student, teacher, {'type': 'freekd_mm.WaveletLoss', 'channels': 16})
    distillation = model.distillation
    with accelerator() as device:
        move(model, device)
        move(distillation.teacher.model, device)
        images = torch.empty(2, 3, 128, 192, device=device)

        def step():
            distillation.steps = 1001
            losses = distillation.run(
                lambda: {'loss_own': sum(level.sum() for level in model.extract_feat(images))}, images, None
            )
            total([value for key, value in losses.items() if 'loss' in key]).backward()
            return losses

        losses = step()
        assert all(value.device.type == NAME for value in losses.values() if isinstance(value, torch.Tensor))
        assert count(step).kernels < 3000


@apart
def test_waiting_and_a_wrong_device_are_found():
    with accelerator() as device:
        x = torch.empty(3, device=device)
        with pytest.raises(Exception, match=r'item|data-dependent|_local_scalar_dense'):
            bool(x.sum() > 0)
        with pytest.raises(Exception, match='device'):
            x + torch.empty(3)
