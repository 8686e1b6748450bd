"""What stage 1 makes of a runner, as data, and of its model: the frozen teacher."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.hooks import CheckpointHook, EMAHook
from mmengine.optim import build_optim_wrapper
from mmengine.runner import Runner
from torch import nn

from freekd_mm.checkpoints.loading import load_checkpoint_file
from freekd_mm.checkpoints.sources import fetch, sha256
from freekd_mm.engine.checkpoint_hook import last_checkpoint
from freekd_mm.log import say, warn
from freekd_mm.prompts.prompt_file import NAME, load_prompt
from freekd_mm.runtime.config import type_name
from freekd_mm.runtime.teacher import load_weights

#: The schedule of the authors' sibling method.
OPTIMIZER = dict(type='Adam', lr=0.01, weight_decay=1e-3)
MIN_LR = 1e-6
#: Iterations by default: a fifth of those of the whole training, within these bounds.
SHARE, LEAST, MOST = 5, 100, 2000


def default_iters(training: int) -> int:
    """Returns how many iterations a prompt trains by default, from those of the training that it is for."""
    return min(max(training // SHARE, LEAST), MOST)


def stage1_recipe(wrapper: dict, optimizer: dict, max_iters: int) -> dict[str, Any]:
    """Returns what stage 1 sets, by the names in a runner's config; it keeps the mixed precision of the ``wrapper``."""
    half = dict(loss_scale='dynamic', dtype=wrapper.get('dtype')) if type_name(wrapper) == 'AmpOptimWrapper' else {}
    return dict(
        train_cfg=dict(by_epoch=False, max_iters=max_iters, val_interval=max_iters),
        optim_wrapper=dict(type=wrapper['type'] if half else 'OptimWrapper', optimizer=optimizer, **half),
        param_scheduler=dict(type='CosineAnnealingLR', T_max=max_iters, eta_min=MIN_LR, by_epoch=False),
        log_processor=dict(by_epoch=False),
        checkpoint=dict(by_epoch=False, interval=max(1, max_iters // 4), filename_tmpl='iter_{}.pth'),
    )


def follow(runner: Runner, recipe: dict[str, Any], prompts: nn.Module) -> None:
    """Builds the parts of a runner again, from the recipe; its optimizer gets the prompts."""
    # mmengine has built them from the teacher's config before any hook runs, in every tool.
    runner._train_dataloader = runner.train_dataloader  # built already: not a second time
    runner._train_loop = runner.build_train_loop(recipe['train_cfg'])
    runner.optim_wrapper = build_optim_wrapper(prompts, recipe['optim_wrapper'])
    runner.param_schedulers = runner.build_param_scheduler(recipe['param_scheduler'])
    vars(runner.log_processor).update(recipe['log_processor'])
    runner._val_loop = None
    for hook in list(runner.hooks):
        if isinstance(hook, CheckpointHook):
            vars(hook).update(recipe['checkpoint'])
        elif isinstance(hook, EMAHook):
            runner._hooks.remove(hook)  # in place: the runner is walking over this list


def teacher_and_resume_point(runner: Runner) -> tuple[str, str | None]:
    """Returns the teacher's checkpoint ('' for none), and that of stage 1 to resume from."""
    # The config's ``load_from`` is the teacher. A run that resumes may name a checkpoint of stage 1 there, or nothing:
    # such a checkpoint says which teacher it belongs to.
    source = runner._load_from or ''
    if not runner._resume:
        return source, None
    content = load_checkpoint_file(source) if Path(source).is_file() else None
    is_stage1 = isinstance(content, Mapping) and NAME in content
    point = source if is_stage1 else str(last_checkpoint(Path(runner.work_dir)) or '')
    if not point:
        warn('frequency prompt: there is no checkpoint to resume from, so the training starts from scratch')
        return source, None
    named = load_prompt(point).teacher
    if source in ('', point):
        return named, point
    if source != named:
        warn(f'frequency prompt: the resumed prompt is of the teacher {named!r}, but the config has {source!r}')
    return source, point


def load_teacher(model: nn.Module, source: str, allow_random: bool) -> tuple[str, str]:
    """Loads and freezes the teacher; the runner has nothing left to initialise. Returns the checkpoint and its hash.

    Without a ``source`` the checkpoint is the one that the teacher's ``init_cfg`` names. The hash is '' if the file is
    not here.
    """
    if source:
        say(f'frequency prompt: teacher {load_weights(model, source)}')
    else:
        own: Any = getattr(model, 'init_cfg', None)
        if isinstance(own, Mapping) and own.get('type') == 'Pretrained':
            source = str(own['checkpoint'])
        if not source and not allow_random:
            raise ValueError(
                f'the teacher {type(model).__name__} should be trained, but the config names no checkpoint: set '
                "load_from = '<file or URL of the teacher>' (or allow_random_teacher=True in the hook, for a test)"
            )
        if not source:
            warn('frequency prompt: the teacher has RANDOM weights')
        model.init_weights()  # type: ignore[operator]
    # Not by a flag of the base class: models extend this method, and would fill some weights again.
    vars(model)['init_weights'] = lambda: None
    model.requires_grad_(False)
    file = Path(fetch(source))
    return source, sha256(file) if file.is_file() else ''
