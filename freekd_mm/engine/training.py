"""Runs a training config, with the prompt stage before it if a config asks for one."""

from __future__ import annotations

from typing import Any

from mmengine.config import Config
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from freekd_mm.compat import install
from freekd_mm.engine.checkpoint_hook import checkpoints_in, hook_of
from freekd_mm.engine.distributed import failing_together, prepare_cpu_processes
from freekd_mm.engine.overview import show_overview
from freekd_mm.engine.preflight import check_config, check_data
from freekd_mm.engine.process import clean_up, quiet_building
from freekd_mm.engine.reliability import Reliability, check_resumed, resume_from
from freekd_mm.engine.workdir import is_first_process, keep_own_config, own_work_dir, set_aside
from freekd_mm.log import say, warn
from freekd_mm.prompts.prompt_file import NAME, new_prompt_file, use_prompt

OPTIONS = ('cfg_path', 'file')


def train(
    cfg: Config, amp: bool = False, auto_scale_lr: bool = False, resume: str | None = None, check: bool = False
) -> Any:
    """Trains a config; stage 1 runs first if its prompt file does not exist yet.

    Args:
        cfg: A config of mmdet, mmseg or freekd_mm. ``frequency_prompt = dict(cfg_path=..., file=...)`` names the
            config that makes the prompt, and its file.
        amp: Mixed precision.
        auto_scale_lr: Scale the learning rate to the batch size.
        resume: A checkpoint, or ``'auto'`` for the newest in the work directory.
        check: Look at the data first, and print what will be trained.

    Returns:
        The trained model.
    """
    install()
    if check and is_first_process(cfg.get('launcher', 'none')):
        check_data(cfg)
    stage1 = cfg.get(NAME)
    if stage1:
        ensure_prompt(dict(stage1), cfg)
    return run(cfg, amp, auto_scale_lr, resume, check)


def ensure_prompt(stage1: dict, cfg: Config) -> None:
    """Trains the frequency prompt of the teacher unless there is one; then sets its full path in the config."""
    if sorted(stage1) != sorted(OPTIONS):
        raise ValueError(f'{NAME} should be a dict of {" and ".join(OPTIONS)}, but got {stage1!r}')
    found = use_prompt(cfg)
    if found is not None:
        say(f'stage 1 of 2: reusing the frequency prompt {found}')
        return
    file = new_prompt_file(cfg)
    warn(f'stage 1 of 2: {file} does not exist yet; training it with {stage1["cfg_path"]}')
    prompt_cfg = Config.fromfile(stage1['cfg_path'])
    prompt_cfg.launcher = cfg.get('launcher', 'none')
    prompt_cfg.work_dir = str(file.parent)
    # The hook takes its own length from that of the training which the prompt is for.
    prompt_cfg.train_cfg = cfg.get('train_cfg') or prompt_cfg.get('train_cfg')
    run(prompt_cfg, resume='auto' if checkpoints_in(file.parent, hook_of(prompt_cfg)) else None)
    if use_prompt(cfg) is None:
        raise RuntimeError(
            f'{stage1["cfg_path"]} should have written {file}, but did not: the file of its FrequencyPromptHook and '
            f"the 'file' of {NAME} have to be the same"
        )
    say('stage 2 of 2: distillation')


def run(
    cfg: Config, amp: bool = False, auto_scale_lr: bool = False, resume: str | None = None, check: bool = False
) -> Any:
    """Trains a config, without a stage before it."""
    install()
    reliability = Reliability.from_config(cfg)
    check_config(cfg)
    prepare_cpu_processes(cfg)
    if amp:
        kind = cfg.optim_wrapper.get('type', 'OptimWrapper')
        if kind not in ('OptimWrapper', 'AmpOptimWrapper'):
            raise ValueError(f'--amp should be used with an OptimWrapper, but the config has {kind}')
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
    if auto_scale_lr:
        if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
            raise ValueError('--auto-scale-lr needs auto_scale_lr = dict(base_batch_size=...), but the config has none')
        cfg.auto_scale_lr.enable = True
    if resume is None and cfg.get('resume') and not cfg.get('load_from'):
        resume = 'auto'
    launcher = cfg.get('launcher', 'none')
    with failing_together(), own_work_dir(cfg.work_dir, launcher):
        point = resume_from(cfg, resume) if resume else None
        keep_own_config(cfg)
        with quiet_building():
            runner = Runner.from_cfg(cfg) if 'runner_type' not in cfg else RUNNERS.build(cfg)
        try:
            if point is None and is_first_process(launcher):
                # Not before: a model that cannot be built leaves the folder as it is.
                set_aside(cfg, runner.timestamp)
            if point is not None:
                check_resumed(runner, point.path)
            if isinstance(runner, Runner):
                runner.dump_config()
            with reliability.attached(runner):
                if check and is_first_process(launcher):
                    show_overview(runner)
                return runner.train()
        finally:
            clean_up(runner)
