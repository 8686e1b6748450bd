"""The teacher of a frequency prompt: where it comes from, and how it is loaded and frozen."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.runner import Runner, find_latest_checkpoint
from torch import nn

from freekd_mm.checkpoints.loading import load_checkpoint_file
from freekd_mm.checkpoints.sources import fetch, sha256
from freekd_mm.log import say, warn
from freekd_mm.prompts.prompt_file import NAME, load_prompt
from freekd_mm.runtime.teacher import load_weights


def teacher_and_resume_point(runner: Runner) -> tuple[str, str | None]:
    """Returns the teacher's checkpoint ('' for none), and that of stage 1 to resume from.

    The config's ``load_from`` is the teacher. A run that resumes may name a checkpoint of stage 1 there, or nothing:
    such a checkpoint says which teacher it belongs to.
    """
    source = runner._load_from or ''
    if not runner._resume:
        return source, None
    content = load_checkpoint_file(source) if Path(source).is_file() else None
    is_stage1 = isinstance(content, Mapping) and NAME in content
    point = source if is_stage1 else find_latest_checkpoint(runner.work_dir)
    if point is None:
        warn('frequency prompt: nothing to resume from, starting from scratch')
        return source, None
    named = load_prompt(point).teacher
    if source in ('', point):
        return named, point
    if source != named:
        warn(f'frequency prompt: resuming a prompt of the teacher {named!r} with {source!r}')
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
    here = source and ('://' not in source or source.startswith('http')) and Path(fetch(source)).is_file()
    return source, sha256(fetch(source)) if here else ''
