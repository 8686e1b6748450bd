"""Makes any config train reliably: what ``tools/train.py`` adds to the runner."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

from mmengine.config import Config
from mmengine.runner import Runner

from freekd_mm.checkpoints.fitting import WeightsMismatchError, load_whole, weights_of
from freekd_mm.checkpoints.loading import load_checkpoint_file
from freekd_mm.checks import check_choice, check_options, check_positive
from freekd_mm.engine.checkpoint_hook import ResumePoint, find_resume_point, hook_of, make_safe
from freekd_mm.engine.distributed import check_equal_steps, has_whole_weights, unwrapped_model
from freekd_mm.engine.exact import ExactResumeHook
from freekd_mm.engine.nonfinite import POLICIES, NonFiniteHook
from freekd_mm.engine.preflight import compare_classes
from freekd_mm.engine.signals import GracefulStopHook
from freekd_mm.log import warn
from freekd_mm.prompts.prompt_file import NAME
from freekd_mm.runtime.model import PREFIX

#: A distillation's own number of steps, which no plain model has.
STEPS = f'{PREFIX}_extra_state'


@dataclass(frozen=True)
class Reliability:
    """``reliability = dict(...)`` of a config; all options have defaults.

    Attributes:
        nonfinite: What happens if a loss or gradient is not finite: ``'error'``, ``'skip'`` or ``'ignore'``.
        patience: How many steps in a row may be skipped, or overflow in mixed precision.
        exact_resume: Seed each step and sample by its place in the run, so that resumes are exact.
        graceful_stop: Save and exit on SIGTERM.
    """

    nonfinite: str = 'error'
    patience: int = 20
    exact_resume: bool = True
    graceful_stop: bool = True

    @classmethod
    def from_config(cls, cfg: Config) -> Reliability:
        """Reads and checks the options."""
        given = cfg.get('reliability') or {}
        if not isinstance(given, dict):
            raise TypeError(f'reliability should be a dict, but got {given!r}')
        check_options('reliability', given, [field.name for field in fields(cls)])
        options = cls(**given)
        check_choice('nonfinite of reliability', options.nonfinite, (*POLICIES, 'ignore'))
        check_positive('patience of reliability', options.patience, integer=True)
        for name in ('exact_resume', 'graceful_stop'):
            if not isinstance(getattr(options, name), bool):
                raise TypeError(f'{name} of reliability should be True or False, but got {getattr(options, name)!r}')
        return options

    @contextmanager
    def attached(self, runner: Any) -> Iterator[None]:
        """Adds the hooks to a runner that has not trained yet; exact resumes need mmengine's ``Runner``."""
        make_safe(runner)
        stop = None
        if self.exact_resume and isinstance(runner, Runner):
            exact = _own(runner, ExactResumeHook())
            exact.prepare(runner)
            check_equal_steps(len(runner._train_dataloader))
        compare_classes(runner)
        if self.nonfinite != 'ignore':
            _own(runner, NonFiniteHook(self.nonfinite, self.patience))
        if self.graceful_stop:
            stop = _own(runner, GracefulStopHook())
        try:
            yield
        finally:
            if stop is not None:
                stop.release()


def check_resumed(runner: Any, path: str) -> None:
    """Raises where the checkpoint to resume is one of another model; the runner loads it later."""
    file = load_checkpoint_file(path)
    # A checkpoint of stage 1 holds the prompt, which is not plugged in yet.
    if NAME not in file and has_whole_weights(runner):
        model, weights = unwrapped_model(runner), weights_of(file, path)
        load_whole(model, weights, path)
        if hasattr(model, 'distillation') and STEPS not in weights:
            raise WeightsMismatchError(
                f'{path} should be a checkpoint of a distillation, but is one of the student alone. To start with its '
                'weights, use load_from instead of --resume.'
            )


def _own(runner: Any, hook: Any) -> Any:
    """Registers a hook, or returns the one of its kind that the config has already."""
    for present in runner.hooks:
        if type(present) is type(hook):
            return present
    runner.register_hook(hook)
    return hook


def resume_from(cfg: Config, resume: str) -> ResumePoint | None:
    """Finds the checkpoint to continue from (``'auto'``: the newest whole one), and sets the config for mmengine."""
    point = find_resume_point(resume, cfg.work_dir, hook_of(cfg))
    if point is None:
        text = f'--resume: there is no checkpoint in {cfg.work_dir}, so the training STARTS FROM SCRATCH'
        warn(text)
    # Without a checkpoint this is a first run, which starts where 'load_from' says.
    cfg.resume = point is not None
    if point is not None:
        cfg.load_from = point.path
        if point.seed is not None:
            # Also if the config does not fix it: samplers are built before the checkpoint is loaded.
            cfg.randomness = {**(cfg.get('randomness') or {}), 'seed': point.seed}
    return point
