"""What happens when a loss or a gradient is not finite: a clear error, or a skipped step."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Sequence
from functools import wraps
from typing import Any

import torch
from mmengine.dist import all_gather_object, all_reduce
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapperDict
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from freekd_mm.checks import check_choice, check_positive
from freekd_mm.compat import install
from freekd_mm.compat.versions import copy_all
from freekd_mm.engine.distributed import unwrapped_model
from freekd_mm.log import say, warn
from freekd_mm.registry import HOOKS
from freekd_mm.runtime.probe import eval_mode
from freekd_mm.runtime.rng import isolated_rng
from freekd_mm.runtime.taps import leaves
from freekd_mm.runtime.teacher import forward_features
from freekd_mm.text import some

POLICIES = ('error', 'skip')
#: By whether the loss is scaled, as in mixed precision.
ADVICE = {
    True: ' Lower the learning rate, clip the gradients, or train in full precision.',
    False: ' No weight was changed. Lower the learning rate or the weight of the loss, clip the gradients, look at the '
    "images, or skip such steps: reliability = dict(nonfinite='skip').",
}


@HOOKS.register_module()
class NonFiniteHook(Hook):
    """Looks at the loss and the gradients before each step of the optimizer, so that no weight is damaged.

    The error or warning names what is not finite: the entries of the distillation and their levels, the
    student's own losses, the features of student and teacher, the iteration, and the images.

    In mixed precision a gradient may overflow: the loss scale is lowered and the step repeated
    with the next batch. A loss that is not finite counts as an overflow too, until it happens ``patience``
    times in a row. Every process of a run sees the same gradients and decides the same.

    Args:
        policy: ``'error'`` ends the run; ``'skip'`` leaves out the step, and its effect on the statistics of
            batch norms.
        patience: How many steps in a row may be skipped, or overflow in mixed precision.
    """

    priority = 'VERY_HIGH'

    def __init__(self, policy: str = 'error', patience: int = 20) -> None:
        check_choice('policy', policy, POLICIES)
        check_positive('patience', patience, integer=True)
        install()
        self.policy, self.patience = policy, patience
        self.in_a_row = 0
        self._finite: list[Tensor] = []
        self._losses: dict[str, Any] = {}
        self._batch: Any = None
        #: Statistics of batch norms, and what they were before the step.
        self._statistics: list[Tensor] = []
        self._kept: list[Tensor] = []

    def before_train(self, runner: Runner) -> None:
        """Puts the check between backward pass and step."""
        model = unwrapped_model(runner)
        parse = model.parse_losses

        def parse_losses(losses: dict) -> Any:
            self._losses = losses
            return parse(losses)

        model.parse_losses = parse_losses
        norms = [module for module in model.modules() if isinstance(module, _NormBase)]
        self._statistics = [buffer for norm in norms for buffer in norm.buffers(recurse=False)]
        self._kept = [torch.empty_like(buffer) for buffer in self._statistics]
        wrapper: Any = runner.optim_wrapper
        for part in wrapper.values() if isinstance(wrapper, OptimWrapperDict) else [wrapper]:
            self._guard(runner, part)

    def _guard(self, runner: Runner, wrapper: Any) -> None:
        backward, step = wrapper.backward, wrapper.step

        def guarded_backward(loss: Tensor, **kwargs: Any) -> None:
            self._finite.append(torch.isfinite(loss.detach()).all())
            backward(loss, **kwargs)

        @wraps(step)  # with the counter that mmengine's schedulers look for
        def guarded_step(**kwargs: Any) -> None:
            if self._may_step(runner, wrapper):
                step(**kwargs)

        wrapper.backward, wrapper.step = guarded_backward, guarded_step

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Stores what a damaged step would change."""
        self._batch = data_batch
        if not self._finite:  # at the first of the batches that a step accumulates
            copy_all(self._kept, self._statistics)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Releases the batch."""
        self._losses, self._batch = {}, None

    def _may_step(self, runner: Runner, wrapper: Any) -> bool:
        finite, self._finite = self._finite, []
        scaler = getattr(wrapper, 'loss_scaler', None)
        scaled = scaler is not None and scaler.is_enabled()  # it leaves out such a step itself, any number of times
        finite.append(_gradients_are_finite(wrapper.optimizer))
        every = torch.stack([value.to(finite[0].device) for value in finite]).int()
        all_reduce(every, 'min')  # all processes must decide the same
        if every.all():
            self.in_a_row = 0
            return True
        self.in_a_row += 1
        if not scaled or not every[:-1].all():  # not for the gradients alone, as in plain mixed precision
            copy_all(self._statistics, self._kept)
        too_many = self.in_a_row > self.patience
        everywhere = all_gather_object(diagnose(unwrapped_model(runner), self._losses, self._batch))
        texts = dict.fromkeys(text for text in everywhere if text)
        finding = f'Iteration {runner.iter + 1}: {" ".join(texts) or "the gradients are not finite."}'
        if scaled and not too_many:
            say(f'{finding} Under mixed precision this is an overflow: the loss scale is lowered.')
            return True
        if self.policy == 'error' or too_many:
            often = f' It happened {self.in_a_row} times in a row.' if too_many else ''
            raise FloatingPointError(f'{finding}{often}{ADVICE[scaled]}')
        warn(f'{finding} The step is skipped.')
        return False


def _gradients_are_finite(optimizer: torch.optim.Optimizer) -> Tensor:
    """Returns whether no gradient holds inf or NaN; the largest value, since squares overflow where values do not."""
    gradients = [p.grad for group in optimizer.param_groups for p in group['params'] if p.grad is not None]
    gradients = [gradient.coalesce().values() if gradient.is_sparse else gradient for gradient in gradients]
    gradients = [gradient for gradient in gradients if gradient.numel()]
    if not gradients:
        return torch.tensor(True)
    return torch.isfinite(torch.stack([norm.float() for norm in torch._foreach_norm(gradients, math.inf)])).all()


def diagnose(model: nn.Module, losses: dict[str, Any], batch: Any) -> str:
    """Returns what is not finite: losses (or their terms), features, images, or gradients; '' if all is finite."""
    images = [str(item.img_path) for item in leaves(batch) if getattr(item, 'img_path', None)]
    parts = [*_losses(model, losses), *_features(model, batch, images)] or _gradients(model)
    seen = some(dict.fromkeys(images), 8) if images else 'unknown'
    return f'{"; ".join(parts)}. Images of the batch: {seen}.' if parts else ''


def _is_finite(value: Any) -> bool:
    return all(bool(torch.isfinite(item).all()) for item in leaves(value) if isinstance(item, Tensor))


def _losses(model: nn.Module, losses: dict[str, Any]) -> list[str]:
    bad = [key for key, value in losses.items() if not _is_finite(value)]
    parts = []
    for name, entry in getattr(getattr(model, 'distillation', None), 'entries', {}).items():
        own = [key[len(f'distill.{name}.') :] for key in bad if key.startswith(f'distill.{name}.')]
        terms = [re.sub(r'^level(\d+)', r'level \1', key).replace('/', ', part ') for key in own]
        if terms or f'distill.loss_{name}' in bad:
            where = f'at {some(dict.fromkeys(terms), 8)}' if terms else 'at no single level'
            parts.append(f"the loss of distill '{name}' ({type(entry.losses[0]).__name__}) is not finite {where}")
    own = [key for key in bad if 'loss' in key and not key.startswith('distill.')]
    if own:
        parts.append(f"the student's own {some(own, 8)} {'is' if len(own) == 1 else 'are'} not finite")
    return parts


def _features(model: Any, batch: Any, images: Sequence[str]) -> list[str]:
    """Runs student and teachers once more, and looks at what the losses compare."""
    distillation: Any = getattr(model, 'distillation', None)
    try:
        with isolated_rng(), torch.no_grad(), eval_mode(model):
            data = model.data_preprocessor(copy.deepcopy(batch), True)
            inputs, samples = data['inputs'], data['data_samples']
            seen: dict[str, Sequence[Tensor]] = {'the input': (inputs,)}
            if distillation is not None:
                entries = list(distillation.entries.values())
                distillation.run_teachers(entries, inputs, samples)
                with distillation.student_recorder as student:
                    forward_features(model, inputs, samples)
                for entry in entries:
                    seen.update({f"the student's '{tap}'": student.levels([tap]) for tap in entry.student_taps})
                    name, teacher = entry.teacher_name, entry.teacher
                    seen.update({f"the {name}'s '{tap}'": teacher.levels([tap]) for tap in entry.teacher_taps})
                distillation.clear()
        return [part for what, levels in seen.items() for part in _tensors(what, levels, images)]
    except Exception as error:  # a second look must not hide what was seen first
        return [f'the features could not be checked again ({type(error).__name__}: {error})']


def _tensors(what: str, levels: Sequence[Tensor], images: Sequence[str]) -> list[str]:
    parts = []
    for index, level in enumerate(levels):
        finite = torch.isfinite(level)
        bad = (~(finite.flatten(1).all(1) if level.dim() > 1 else finite)).tolist()
        if any(bad):
            where = f' at level {index}' if len(levels) > 1 else ''
            of = dict.fromkeys(image for image, is_bad in zip(images, bad) if is_bad)
            parts.append(f'{what} is not finite{where}{f" for {some(of, 8)}" if of else ""}')
    return parts


def _gradients(model: nn.Module) -> list[str]:
    bad = [name for name, p in model.named_parameters() if p.grad is not None and not _is_finite(p.grad)]
    return [f'the losses are finite, but the gradient is not at {some(bad, 4)}'] if bad else []
