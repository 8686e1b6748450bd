"""Stage 1 as data: which parts of a runner it sets, and to what."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import CheckpointHook, EMAHook
from mmengine.optim import build_optim_wrapper
from mmengine.runner import Runner
from torch import nn

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
    half = dict(loss_scale='dynamic', dtype=wrapper.get('dtype')) if wrapper.get('type') == 'AmpOptimWrapper' else {}
    return dict(
        train_cfg=dict(by_epoch=False, max_iters=max_iters, val_interval=max_iters),
        optim_wrapper=dict(type=wrapper['type'] if half else 'OptimWrapper', optimizer=optimizer, **half),
        param_scheduler=dict(type='CosineAnnealingLR', T_max=max_iters, eta_min=MIN_LR, by_epoch=False),
        log_processor=dict(by_epoch=False),
        checkpoint=dict(by_epoch=False, interval=max(1, max_iters // 4), filename_tmpl='iter_{}.pth'),
        left_out=EMAHook,
    )


def follow(runner: Runner, recipe: dict[str, Any], prompts: nn.Module) -> None:
    """Builds the parts of a runner again, from the recipe; its optimizer gets the prompts.

    mmengine has built them from the teacher's config before any hook runs, in every tool.
    """
    runner._train_dataloader = runner.train_dataloader  # built already: not a second time
    runner._train_loop = runner.build_train_loop(recipe['train_cfg'])
    runner.optim_wrapper = build_optim_wrapper(prompts, recipe['optim_wrapper'])
    runner.param_schedulers = runner.build_param_scheduler(recipe['param_scheduler'])
    vars(runner.log_processor).update(recipe['log_processor'])
    runner._val_loop = None
    for hook in list(runner.hooks):
        if isinstance(hook, CheckpointHook):
            vars(hook).update(recipe['checkpoint'])
        elif isinstance(hook, recipe['left_out']):
            runner._hooks.remove(hook)  # in place: the runner is walking over this list
