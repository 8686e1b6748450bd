"""What ``make_config.py`` checks before it writes: the teacher's checkpoint, the prompt, the student's data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config
from torch import nn

from freekd_mm.checkpoints.fitting import WeightsMismatchError
from freekd_mm.checkpoints.sources import is_here
from freekd_mm.engine.preflight import check_data
from freekd_mm.prompts.prompt_file import load_prompt
from freekd_mm.runtime.compatibility import check_prompt, swap_hint, warn_if_swapped
from freekd_mm.runtime.teacher import load_weights


def check_inputs(
    student: nn.Module | None, teacher: nn.Module, checkpoint: str | None, prompt: str | None, configs: Sequence[Config]
) -> None:
    """Raises errors that training would find later; warns if teacher and student look swapped.

    The teacher gets its weights, unless it has them (no checkpoint); a URL is checked if its file is in the cache. The
    student is None for stage 1 alone.
    """
    if checkpoint is not None and is_here(checkpoint):
        try:
            load_weights(teacher, checkpoint)
        except WeightsMismatchError as error:
            raise WeightsMismatchError(f'{error}{swap_hint(student, checkpoint) if student else ""}') from error
    if student is not None:
        warn_if_swapped(student, teacher)
    if prompt is not None:
        if '://' not in prompt and not Path(prompt).is_file():
            raise FileNotFoundError(f'the prompt should be an existing file, but got {prompt!r}')
        file = load_prompt(prompt)
        if checkpoint is not None and is_here(checkpoint):
            check_prompt(f'the prompt {prompt}', file, checkpoint)
    check_data(configs[0])
