"""A distilled run of two iterations with all that is drawn: a prompt, a relation, projections."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tiny_configs
import torch
from distill_cases import distilled, save_weights, train

from freekd_mm.prompts.prompt_file import PromptFile, save_prompt

LEVELS, STUDENT, TEACHER = 3, 16, 24


@dataclass(frozen=True)
class TinyRun:
    """Config file, work directory and checkpoint of a model."""

    config: Path
    work_dir: Path
    checkpoint: Path


def entry(folder: Path, **options: Any) -> dict[str, Any]:
    """Returns the entry of a FreeKD distillation with a prompt of random tokens."""
    tokens = {f'neck[{i}]': torch.randn(3, 2, TEACHER, generator=torch.manual_seed(i)) for i in range(LEVELS)}
    prompt = save_prompt(PromptFile(tokens, num_tokens=2, levels=2), folder / 'prompt.pth')
    loss = {'type': 'freekd_mm.FreeKDLoss', 'channels': TEACHER, 'levels': 2, 'min_positions': 0, 'prompt': str(prompt)}
    return {'student': 'neck', 'loss': {**loss, **options}}


def detector_runs(folder: Path, scenes: Path) -> tuple[TinyRun, TinyRun, TinyRun]:
    """Trains a tiny student alone and distilled; returns teacher (not trained), student and distilled student."""
    plain = tiny_configs.detector(scenes, channels=STUDENT, levels=LEVELS)
    big = tiny_configs.detector(scenes, width=16, channels=TEACHER, levels=LEVELS)
    teacher = tiny_configs.write(folder / 'teacher.py', big)
    weights = save_weights(big['model'], folder / 'teacher.pth')
    teaching = {'cfg_path': str(teacher), 'checkpoint': str(weights)}
    configs = {
        'student': plain,
        'distilled': distilled(plain, teaching, {'freekd': entry(folder)}),
    }
    runs = [TinyRun(teacher, folder / 'teacher_work', weights)]
    runs[0].work_dir.mkdir()
    for name, config in configs.items():
        path = tiny_configs.write(folder / f'{name}.py', config)
        runner = train(path, **{'default_hooks.logger.interval': 1})
        work_dir = Path(runner.work_dir)
        runs.append(TinyRun(path, work_dir, Path((work_dir / 'last_checkpoint').read_text())))
    return runs[0], runs[1], runs[2]
