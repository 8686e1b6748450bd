"""Runs a training config, reliably, with the prompt stage before it if a config asks for one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from mmengine.config import Config
from mmengine.dist import barrier
from mmengine.hooks import Hook
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from freekd_mm.checkpoints.fitting import PREFIX, WeightsMismatchError, load_whole, weights_of
from freekd_mm.checkpoints.loading import load_checkpoint_file
from freekd_mm.checks import check_choice, check_options, check_positive
from freekd_mm.compat import install
from freekd_mm.engine import distributed
from freekd_mm.engine.checkpoint_hook import ResumePoint, checkpoints_of, find_resume_point, make_safe
from freekd_mm.engine.exact import ExactResumeHook
from freekd_mm.engine.nonfinite import POLICIES, NonFiniteHook
from freekd_mm.engine.preflight import check_config, check_data, compare_classes, show_overview
from freekd_mm.engine.process import clean_up, quiet_building
from freekd_mm.engine.signals import GracefulStopHook
from freekd_mm.engine.workdir import is_first_process, keep_own_config, own_work_dir, set_aside
from freekd_mm.log import say, warn
from freekd_mm.prompts.prompt_file import NAME, new_prompt_file, use_prompt
from freekd_mm.runtime.config import type_name

OPTIONS = ('cfg_path', 'file')
#: A distillation's own number of steps, which no plain model has.
STEPS = f'{PREFIX}_extra_state'
#: ``reliability = dict(...)`` of a config, see docs/reliability.md.
RELIABILITY = {
    'nonfinite': 'error',  # what happens if a loss or gradient is not finite: or 'skip', 'ignore'
    'patience': 20,  # steps in a row that may be skipped, or overflow in mixed precision
    'exact_resume': True,  # seed each step and sample by its place in the run, so that resumes are exact
    'graceful_stop': True,  # save and exit on SIGTERM
}


def ensure_prompt(stage1: dict, cfg: Config, amp: bool = False) -> None:
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
    run(prompt_cfg, amp, resume='auto' if checkpoints_of(prompt_cfg) else None)
    barrier()  # the first process writes the file
    if use_prompt(cfg) is None:
        raise RuntimeError(
            f'{stage1["cfg_path"]} should have written {file}, but did not: the file of its FrequencyPromptHook and '
            f"the 'file' of {NAME} have to be the same"
        )
    say('stage 2 of 2: distillation')


def run(
    cfg: Config, amp: bool = False, auto_scale_lr: bool = False, resume: str | None = None, check: bool = False
) -> Any:
    """Trains a config; stage 1 runs first if its prompt file does not exist yet.

    Args:
        cfg: A config of mmdet, mmseg or freekd_mm. ``frequency_prompt = dict(cfg_path=..., file=...)`` names the
            config that makes the prompt, and its file; ``reliability = dict(...)`` has the options of
            :data:`RELIABILITY`.
        amp: Mixed precision.
        auto_scale_lr: Scale the learning rate to the batch size.
        resume: A checkpoint, or ``'auto'`` for the newest in the work directory.
        check: Look at the data first, and print what will be trained.

    Returns:
        The trained model.
    """
    install()
    launcher = cfg.get('launcher', 'none')
    check = check and is_first_process(launcher)
    data = check_data(cfg) if check else []
    if cfg.get(NAME):
        ensure_prompt(dict(cfg[NAME]), cfg, amp)
    hooks = reliability_hooks(cfg)
    check_config(cfg)
    if type_name(cfg.get('strategy') or {}) in ('DeepSpeedStrategy', 'ColossalAIStrategy'):  # they write folders
        raise ValueError(f'strategy should write checkpoints as files, as FSDPStrategy, but got {cfg.strategy.type}')
    distributed.prepare_cpu_processes(cfg)
    if amp:
        kind = type_name(cfg.optim_wrapper) or 'OptimWrapper'
        if kind not in ('OptimWrapper', 'AmpOptimWrapper'):
            raise ValueError(f'--amp should be used with an OptimWrapper, but the config has {kind}')
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
    if auto_scale_lr:
        if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
            raise ValueError('--auto-scale-lr needs auto_scale_lr = dict(base_batch_size=...), but the config has none')
        cfg.auto_scale_lr.enable = True
    if resume is None and cfg.get('resume'):
        # In a config of stage 1, 'load_from' names the teacher.
        stage1 = any(type_name(hook) == 'FrequencyPromptHook' for hook in cfg.get('custom_hooks') or [])
        resume = 'auto' if stage1 else cfg.get('load_from') or 'auto'
    with distributed.failing_together(), own_work_dir(cfg.work_dir, launcher), ExitStack() as end:
        point = resume_from(cfg, resume) if resume else None
        keep_own_config(cfg)
        with quiet_building():
            runner = Runner.from_cfg(cfg) if 'runner_type' not in cfg else RUNNERS.build(cfg)
            end.callback(clean_up, runner)
            if point is not None:
                check_resumed(runner, point.path)
            if is_first_process(launcher):
                # Not before: a model that cannot be built leaves the folder as it is.
                set_aside(cfg, runner.timestamp, point.path if point else None)
        if isinstance(runner, Runner):
            runner.dump_config()
        with reliable(runner, hooks):
            if check:
                show_overview(runner, data)
            return runner.train()


def reliability_hooks(cfg: Config) -> list[Hook]:
    """Returns the hooks that ``reliability`` of a config asks for."""
    given = cfg.get('reliability') or {}
    if not isinstance(given, dict):
        raise TypeError(f'reliability should be a dict, but got {given!r}')
    check_options('reliability', given, RELIABILITY)
    options = {**RELIABILITY, **given}
    check_choice('nonfinite of reliability', options['nonfinite'], (*POLICIES, 'ignore'))
    check_positive('patience of reliability', options['patience'], integer=True)
    for name in ('exact_resume', 'graceful_stop'):
        check_choice(f'{name} of reliability', options[name], (True, False))
    hooks: list[Hook] = [ExactResumeHook()] if options['exact_resume'] else []
    if options['nonfinite'] != 'ignore':
        hooks.append(NonFiniteHook(options['nonfinite'], options['patience']))
    return [*hooks, GracefulStopHook()] if options['graceful_stop'] else hooks


@contextmanager
def reliable(runner: Any, hooks: Sequence[Hook]) -> Iterator[None]:
    """Adds hooks to a runner that has not trained yet; exact resumes need mmengine's ``Runner``."""
    make_safe(runner)
    present = {type(hook): hook for hook in runner.hooks}
    for hook in hooks:
        if isinstance(hook, ExactResumeHook) and not isinstance(runner, Runner):
            continue
        if type(hook) not in present:  # the config may have its own
            runner.register_hook(hook)
        hook = present.get(type(hook), hook)
        if isinstance(hook, ExactResumeHook):
            hook.prepare(runner)
            distributed.check_equal_steps(len(runner._train_dataloader))
    compare_classes(runner)
    check_rates(runner)
    try:
        yield
    finally:
        for hook in runner.hooks:
            if isinstance(hook, GracefulStopHook):
                hook.release()


def check_rates(runner: Any) -> None:
    """Warns if a connector trains with the learning rate of a part of the student, because of its entry's name."""
    # mmengine takes the longest key that is anywhere in a parameter's name.
    settings = (runner.cfg.get('optim_wrapper') or {}).get('paramwise_cfg') or {}
    keys = sorted(settings.get('custom_keys') or {}, key=len, reverse=True)
    model = distributed.unwrapped_model(runner)
    for name, entry in getattr(getattr(model, 'distillation', None), 'entries', {}).items():
        key = next((key for key in keys if key in f'{PREFIX}entries.{name}.'), PREFIX)
        if key in name and list(entry.parameters()):
            warn(f"distill '{name}' trains its connector as {key!r} in custom_keys says, a part of its name: rename it")


def check_resumed(runner: Any, path: str) -> None:
    """Raises where the checkpoint to resume is one of another model; the runner loads it later."""
    file = load_checkpoint_file(path)
    # A checkpoint of stage 1 holds the prompt, which is not plugged in yet.
    if NAME not in file and distributed.has_whole_weights(runner):
        model, weights = distributed.unwrapped_model(runner), weights_of(file, path)
        load_whole(model, weights, path)
        if hasattr(model, 'distillation') and STEPS not in weights:
            raise WeightsMismatchError(
                f'{path} should be a checkpoint of a distillation, but is one of the student alone. To start with its '
                'weights, use load_from instead of --resume.'
            )


def resume_from(cfg: Config, resume: str) -> ResumePoint | None:
    """Finds the checkpoint to continue from (``'auto'``: the newest whole one), and sets the config for mmengine."""
    point = find_resume_point(resume, cfg)
    if point is None:
        warn(f'--resume: there is no checkpoint in {cfg.work_dir}, so the training STARTS FROM SCRATCH')
    # Without a checkpoint this is a first run, which starts where 'load_from' says.
    cfg.resume = point is not None
    if point is not None:
        cfg.load_from = point.path
        if point.seed is not None:
            # Also if the config does not fix it: samplers are built before the checkpoint is loaded.
            cfg.randomness = {**(cfg.get('randomness') or {}), 'seed': point.seed}
    return point
