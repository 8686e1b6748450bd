"""Where the teacher of a frequency prompt comes from."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.runner import Runner, find_latest_checkpoint
from torch import nn

from freekd_mm.checkpoints.loading import load_checkpoint_file
from freekd_mm.checkpoints.sources import fetch, sha256
from freekd_mm.version import __version__

# Key of stage 1's own checkpoints, beside the state dict.
MARK = 'frequency_prompt'


@dataclass
class TeacherOrigin:
    """The checkpoint of the teacher of a frequency prompt.

    Attributes:
        source: File or URL; empty for a random teacher.
        by_init_cfg: The model loads it by itself, by its init_cfg.
        sha256: Hash of the file.
    """

    source: str = ''
    by_init_cfg: bool = False
    sha256: str = ''

    @classmethod
    def of_runner(cls, runner: Runner, model: nn.Module, allow_random: bool) -> TeacherOrigin:
        """Finds the teacher's checkpoint and takes it over from the runner, which would resume from it.

        Raises:
            ValueError: There is none, and a random teacher is not allowed.
        """
        source = runner._load_from or ''
        if runner._resume:
            source = cls._sort_out_resume(runner, source)
        else:
            runner._load_from = None
        if source:
            # All of it will be overwritten; an ImageNet checkpoint need not be downloaded first.
            for module in model.modules():
                if hasattr(module, 'init_cfg'):
                    vars(module)['init_cfg'] = None
            return cls(source)
        init_cfg = getattr(model, 'init_cfg', None) or {}
        if isinstance(init_cfg, Mapping) and init_cfg.get('type') == 'Pretrained':
            return cls(str(init_cfg['checkpoint']), by_init_cfg=True)
        if not allow_random:
            raise ValueError(
                f'the teacher {type(model).__name__} should be trained, but the config names no checkpoint: set '
                "load_from = '<file or URL of the teacher>' (or allow_random_teacher=True in the hook, for a test)"
            )
        print_log('frequency prompt: the teacher has RANDOM weights', 'current', logging.WARNING)
        return cls()

    @staticmethod
    def _sort_out_resume(runner: Runner, source: str) -> str:
        """Lets the runner resume from a checkpoint of stage 1 only; returns the teacher's checkpoint."""
        stage1 = source if source and _is_stage1(source) else find_latest_checkpoint(runner.work_dir)
        if stage1 is None:
            print_log('frequency prompt: nothing to resume from, starting anew', 'current', logging.WARNING)
            runner._resume, runner._load_from = False, None
            return source
        runner._load_from = stage1
        if source and source != stage1:
            return source
        return str(load_checkpoint_file(stage1)[MARK]['teacher'])

    def load(self, model: nn.Module) -> None:
        """Loads the teacher's weights and notes their hash."""
        if not self.source:
            return
        if not self.by_init_cfg:
            from freekd_mm.runtime.teacher import load_weights

            print_log(f'frequency prompt: teacher {load_weights(model, self.source)}', 'current')
        local = Path(fetch(self.source)) if '://' not in self.source or self.source.startswith('http') else None
        if local is not None and local.is_file():
            self.sha256 = sha256(local)

    def check_resumed(self, content: Mapping[str, Any]) -> None:
        """Warns where a resumed prompt was trained with another teacher."""
        if content.get('teacher') != self.source:
            print_log(
                f'frequency prompt: resuming a prompt of the teacher {content.get("teacher")!r} with {self.source!r}',
                'current',
                logging.WARNING,
            )


def _is_stage1(source: str) -> bool:
    path = Path(source)
    if not path.is_file():
        return False
    content = load_checkpoint_file(path)
    return isinstance(content, Mapping) and MARK in content


def versions() -> dict[str, str]:
    """Returns the versions of what made a prompt."""
    found = {'freekd_mm': __version__, 'torch': str(torch.__version__)}
    for name in ('mmengine', 'mmcv', 'mmdet', 'mmseg'):
        if name in sys.modules:
            found[name] = str(getattr(sys.modules[name], '__version__', ''))
    return found


def plain(value: Any) -> Any:
    """Returns nested dicts, lists, strings and numbers, which load as data; everything else as its text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
