"""Writes a distillation config for any student and teacher: probes both, chooses taps, spells the wiring out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from pprint import pformat
from typing import Any

from freekd_mm.compat.versions import zip_equal
from freekd_mm.files import write_text
from freekd_mm.prompts.prompt_file import PROMPT_FILE
from freekd_mm.runtime.config import load_config
from freekd_mm.runtime.inherit import choose_modules
from freekd_mm.text import table
from freekd_mm.wizard.methods import METHODS, PROMPTED, Shape, Wiring, method_entries, parse_methods
from freekd_mm.wizard.places import Probed, find_wiring, probe_config


def make_config(
    student_cfg: str,
    teacher_cfg: str,
    checkpoint: str,
    method: str,
    out: str | os.PathLike,
    stage: str = 'distill',
    prompt: str | None = None,
    prompt_iters: int | None = None,
    prompt_dir: str | os.PathLike | None = None,
    inherit: Sequence[str] | None = (),
    head: bool = True,
    size: tuple[int, int] = (128, 128),
) -> list[Path]:
    """Writes the config, and the one of stage 1 beside it where the method uses a prompt that is not there.

    Args:
        student_cfg: The student's config: a file, or ``mmdet::...``.
        teacher_cfg: The teacher's.
        checkpoint: The teacher's checkpoint, a file or a URL.
        method: A name of ``METHODS``, or several joined by ``+``.
        out: The file to write.
        stage: ``'distill'``, or ``'prompt'`` to write the config of stage 1 alone.
        prompt: A prompt file made before, instead of stage 1; with any method of wavelets.
        prompt_iters: Iterations of stage 1; a fifth of the training by default.
        prompt_dir: Work directory of stage 1; ``work_dirs/<its config>`` by default.
        inherit: Modules of the student that start with the teacher's weights; empty for all that fit but the
            backbone, None for none.
        head: Whether to compare what the decode heads of segmenters classify as well.
        size: Size of the dummy image.

    Returns:
        The files written.
    """
    names = parse_methods(method)
    out = Path(out)
    uses_prompt = any(METHODS[name].uses_prompt for name in names) or prompt is not None
    if prompt is not None and not any(name.startswith(PROMPTED) for name in names):
        takes_one = ', '.join(name for name in METHODS if name.startswith(PROMPTED))
        raise ValueError(f'a prompt should be used with one of the methods {takes_one}, but got {method!r}')
    teacher = probe_config(load_config(teacher_cfg), 'teacher', size)
    prompt_out = out if stage == 'prompt' else out.with_name(f'{out.stem}_prompt{out.suffix}')
    stage1_dir = Path(prompt_dir) if prompt_dir is not None else Path('work_dirs') / prompt_out.stem
    written = []
    if stage == 'prompt' or (uses_prompt and prompt is None):
        source = prompt_source(teacher_cfg, checkpoint, teacher, prompt_out, stage1_dir, prompt_iters)
        written.append(write_text(prompt_out, source))
    if stage == 'prompt':
        return written
    student = probe_config(load_config(student_cfg), 'student', size)
    wiring = find_wiring(student, teacher, size, head)
    file = prompt or str(stage1_dir / PROMPT_FILE)
    entries = method_entries(method, wiring)
    if uses_prompt:
        for loss in (entries[name]['loss'] for name in PROMPTED if name in entries):
            loss['prompt'] = wiring.prompt_option(file, loss)
    stage1 = prompt_out if uses_prompt and prompt is None else None
    modules = choose_modules(student.model, teacher.model, inherit) if inherit is not None else []
    start = f"    # Start with the teacher's weights.\n    inherit={modules!r},\n" if modules else ''
    source = distill_source(
        student_cfg, teacher_cfg, checkpoint, method, wiring, entries, out, stage1, file, size, start
    )
    return [*written, write_text(out, source)]


def prompt_source(
    teacher_cfg: str, checkpoint: str, teacher: Probed, out: Path, work_dir: Path, iterations: int | None
) -> str:
    """Returns the config of stage 1."""
    hook: dict = {'type': 'freekd_mm.FrequencyPromptHook', 'modules': teacher.features}
    if iterations is not None:
        hook['max_iters'] = iterations
    base_hooks = '*_base_.custom_hooks, ' if load_config(teacher_cfg).get('custom_hooks') else ''
    return f"""# FreeKD, stage 1: the frequency prompt of the teacher. Written by tools/make_config.py; edit freely.
_base_ = [{_base(teacher_cfg, out)!r}]

load_from = {_reference(checkpoint, out)}
custom_hooks = [{base_hooks}{_source(hook, 0)}]
work_dir = {str(work_dir)!r}
"""


def distill_source(
    student_cfg: str,
    teacher_cfg: str,
    checkpoint: str,
    method: str,
    wiring: Wiring,
    entries: dict[str, dict],
    out: Path,
    stage1: Path | None,
    file: str,
    size: tuple[int, int],
    start: str,
) -> str:
    """Returns the config of the distillation."""
    stage = ''
    if stage1 is not None:
        stage = f"""
# Stage 1 runs first where its file is not there yet.
frequency_prompt = dict(cfg_path='{{{{ fileDirname }}}}/{stage1.name}', file={file!r})
"""
    body = ',\n'.join(f'        {name}={_source(entry, 8)}' for name, entry in entries.items())
    return f"""# Distils the student of the base config with {method}. Written by tools/make_config.py; edit freely.
_base_ = [{_base(student_cfg, out)!r}]

# Features, as a {size[0]}x{size[1]} image gives them:
{_levels(wiring)}
{stage}
model = dict(
    _delete_=True,
    type='freekd_mm.DistilledModel',
    architecture={{{{_base_.model}}}},
    teacher=dict(
        cfg_path={_reference(teacher_cfg, out)},
        checkpoint={_reference(checkpoint, out)},
    ),
{start}    distill=dict(
{body},
    ),
)
"""


def _levels(wiring: Wiring) -> str:
    """Returns what is compared with what as comments."""
    rows = [
        [str(index), 'x'.join(map(str, teacher)), 'x'.join(map(str, student)), _action(student, teacher)]
        for index, (student, teacher) in enumerate(zip_equal(wiring.shapes_s, wiring.shapes_t))
    ]
    header = ['level', f'teacher {wiring.features_t}', f'student {wiring.features_s}', 'the student is']
    comment = '\n'.join(f'#   {line}' for line in table(rows, header).splitlines())
    return comment if wiring.head is None else f'{comment}\n{_levels(wiring.head)}'


def _action(student: Shape, teacher: Shape) -> str:
    actions = [f'projected {student[0]} -> {teacher[0]}'] if student[0] != teacher[0] else []
    actions += ['resized'] if student[1:] != teacher[1:] else []
    return ', '.join(actions) or 'compared as it is'


def _source(value: Any, indent: int) -> str:
    """Returns a nested dict as ``dict(key=value, ...)``."""
    if not isinstance(value, dict):
        return pformat(value, width=100)
    one_line = 'dict(' + ', '.join(f'{key}={_source(item, 0)}' for key, item in value.items()) + ')'
    if len(one_line) + indent < 110:
        return one_line
    pad = ' ' * (indent + 4)
    items = ''.join(f'{pad}{key}={_source(item, indent + 4)},\n' for key, item in value.items())
    return f'dict(\n{items}{" " * indent})'


def _base(cfg: str, out: Path) -> str:
    """Returns how the new config names its base."""
    return cfg if '::' in cfg else os.path.relpath(Path(cfg).resolve(), out.resolve().parent)


def _reference(path: str, out: Path) -> str:
    """Returns how the new config names a file: relative to itself, so that both can move together."""
    if '::' in path or path.startswith(('http://', 'https://')):
        return repr(path)
    return repr('{{ fileDirname }}/' + os.path.relpath(Path(path).expanduser().resolve(), out.resolve().parent))
