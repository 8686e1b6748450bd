"""The weight of distillation over a training run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, Runner

from freekd_mm.checks import check_choice, check_positive
from freekd_mm.engine.distributed import unwrapped_model
from freekd_mm.registry import HOOKS

DECAYS = ('constant', 'cosine')


@HOOKS.register_module()
class DistillScheduleHook(Hook):
    """Scales the distillation losses: linear warm-up, then constant or decaying, then off.

    The factor depends on the iteration alone, so that a resumed run continues with the right one. While it is
    zero, the teacher does not run.

    Args:
        warmup: The share of the training, between 0 and 1, in which the weight rises from 0 to its full value.
        decay: ``'constant'``, or ``'cosine'`` from the end of the warm-up to ``end``.
        end: Factor at the end of training.
        stop_epoch: From this epoch (counted from 0) on the factor is zero.
        entries: Names of the entries to schedule; all by default.
    """

    priority = 'ABOVE_NORMAL'

    def __init__(
        self,
        warmup: float = 0.0,
        decay: str = 'constant',
        end: float = 0.0,
        stop_epoch: int | None = None,
        entries: Sequence[str] | None = None,
    ) -> None:
        check_positive('warmup', warmup, zero=True)
        if warmup > 1:
            raise ValueError(f'warmup should be a share of the training, at most 1, but got {warmup}')
        check_choice('decay', decay, DECAYS)
        check_positive('end', end, zero=True)
        if stop_epoch is not None:
            check_positive('stop_epoch', stop_epoch, integer=True, zero=True)
        self.warmup, self.decay, self.end = warmup, decay, end
        self.stop_epoch, self.entries = stop_epoch, entries

    def factor(self, iteration: int, max_iters: int, epoch: int = 0) -> float:
        """Returns the factor at an iteration (counted from 0)."""
        if self.stop_epoch is not None and epoch >= self.stop_epoch:
            return 0.0
        rising = int(self.warmup * max_iters)
        if iteration < rising:
            return (iteration + 1) / (rising + 1)
        if self.decay == 'constant':
            return 1.0
        progress = min((iteration - rising) / max(max_iters - 1 - rising, 1), 1.0)
        return self.end + (1 - self.end) * (1 + math.cos(math.pi * progress)) / 2

    def before_train(self, runner: Runner) -> None:
        """Checks that there is something to schedule, and epochs to count."""
        if self.stop_epoch is not None and not isinstance(runner.train_loop, EpochBasedTrainLoop):
            raise ValueError("stop_epoch should be None in a training that counts iterations; use decay='cosine'")
        distillation = distillation_of(runner, self)
        for name in self.entries or ():
            distillation.entry(name)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Sets the factor of this iteration and logs it."""
        distillation = distillation_of(runner, self)
        factor = self.factor(runner.iter, runner.max_iters, runner.epoch)
        for name in self.entries or list(distillation.entries):
            distillation.entry(name).scale = factor
        for name in self.entries or ('',):
            runner.message_hub.update_scalar('train/distill.scale' + (f'.{name}' if name else ''), factor)


def distillation_of(runner: Any, hook: Hook) -> Any:
    """Returns the distillation of the model that a hook of ours runs with."""
    model = unwrapped_model(runner)
    if not hasattr(model, 'distillation'):
        raise TypeError(
            f"{type(hook).__name__} should run with model=dict(type='freekd_mm.DistilledModel', ...), but got "
            f'{type(model).__name__}'
        )
    return model.distillation
