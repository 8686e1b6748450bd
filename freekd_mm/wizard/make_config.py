"""Writes a distillation config for any student and teacher: probes both, chooses taps, writes out the wiring."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mmengine.config import Config
from torch import nn

from freekd_mm.checkpoints.sources import is_here
from freekd_mm.checks import check_positive
from freekd_mm.compat.versions import zip_equal
from freekd_mm.engine.preflight import check_data, data_classes
from freekd_mm.files import check_output, write_kept
from freekd_mm.prompts.prompt import MODES
from freekd_mm.prompts.prompt_file import PROMPT_FILE, load_prompt
from freekd_mm.registry import MODELS
from freekd_mm.runtime.compatibility import check_classes, check_prompt, hint_if_swapped, warn_if_swapped
from freekd_mm.runtime.config import build_component, build_empty, is_distilled, load_config
from freekd_mm.runtime.inherit import choose_modules
from freekd_mm.runtime.probe import SMALL, Size, config_size
from freekd_mm.runtime.teacher import build_teacher, load_weights, named_classes, teacher_options
from freekd_mm.wizard.methods import METHODS, Entries, Wiring, method_entries, parse_methods, prompt_modes, prompted
from freekd_mm.wizard.places import Probed, at_level_of, find_wiring, probe_models
from freekd_mm.wizard.sources import Style, distill_source, prompt_source


@dataclass(frozen=True)
class Plan:
    """The text of each file to be written, the inputs that must not be overwritten, and what was found."""

    files: dict[Path, str]
    inputs: tuple[Path, ...]
    probed: tuple[Probed, ...]
    wiring: Wiring | None = None
    compares: bool = True  # whether a method compares features

    def summary(self) -> str:
        """Says in three lines what was found."""
        if self.wiring is None:
            return f'features: {self.probed[-1].trained} of the teacher'
        wiring = self.wiring
        levels = len(wiring.shapes_s)
        taps = f'{wiring.features_s} of the student, {wiring.features_t} of the teacher, {levels} level(s)'
        if wiring.head is not None:
            taps += f'; {wiring.head.features_s} of the student, {wiring.head.features_t} of the teacher'
        left = []
        for role, probed in zip_equal(('student', 'teacher'), self.probed):
            unpaired = len(probed.shapes) - levels
            left += [f'{probed.vectors} vector(s) of the {role}'] if probed.vectors else []
            left += [f'{unpaired} level(s) of the {role} without a partner'] if unpaired else []
        return (
            f'features:  {taps if self.compares else "not compared"}\n'
            f'logits:    {wiring.logits or f"cannot be compared: {wiring.why_no_logits}"}\n'
            f'left out:  {", ".join(left) if left and self.compares else "nothing"}'
        )

    def write(self, force: bool = False) -> list[Path]:
        """Writes the files; ``force`` replaces what is there and keeps it as ``.bak``."""
        for path in self.files:
            check_output(path, self.inputs, force)
        return [write_kept(path, text) for path, text in self.files.items()]


def plan_config(
    student_cfg: str,
    teacher_cfg: str,
    checkpoint: str | None,
    method: str,
    out: str | os.PathLike,
    stage: str = 'distill',
    prompt: str | None = None,
    prompt_iters: int | None = None,
    prompt_dir: str | os.PathLike | None = None,
    inherit: Sequence[str] | None = (),
    head: bool = True,
    size: Size | None = None,
    features: Sequence[str] = (),
    check: bool = True,
    unlabelled: str | os.PathLike | None = None,
) -> Plan:
    """Probes both models and plans the config, and the one of stage 1 if the method needs a new prompt.

    The options are those of ``tools/make_config.py``: ``size`` is its ``--probe-size``, ``inherit=None`` its
    ``--no-inherit``, and ``head=False`` and ``check=False`` its ``--no-head`` and ``--no-check``.
    """
    names = parse_methods(method)
    check_positive('--prompt-iters', 1 if prompt_iters is None else prompt_iters, integer=True)
    check_positive('--probe-size', min(size or (1,)), integer=True)
    out = Path(out)
    if out.suffix != '.py':
        raise ValueError(f'-o should be the name of a Python file, like {out.stem}.py, but got {str(out)!r}')
    modes = prompt_modes(method)
    if len(set(modes.values())) > 1 and prompt is None:
        raise ValueError(
            'methods joined by + should need one kind of prompt, because stage 1 trains one, but '
            + ' and '.join(f'{name} needs mode={mode!r}' for name, mode in modes.items())
        )
    mode = next(iter(modes.values()), None)
    trains = stage == 'prompt' or (mode is not None and prompt is None)
    if (trains or prompt is not None) and not prompted(method):
        takes_one = ', '.join(name for name in METHODS if prompted(name))
        raise ValueError(f'a prompt should be used with one of the methods {takes_one}, but got {method!r}')
    options = teacher_options(teacher_cfg, checkpoint)
    foreign = 'cfg_path' not in options
    if foreign:
        known = [name for name, method in METHODS.items() if method.on_features and method.prompt is None]
        wrong = [name for name in names if name not in known] + ['stage 1 of a prompt'] * trains
        if wrong:
            what = f'{teacher_cfg} gives features alone, so the method should be one of {", ".join(known)}'
            raise ValueError(f'{what}, but got {wrong[0]}')
    elif checkpoint is None:
        raise ValueError(f"{teacher_cfg} should have its teacher's checkpoint (--teacher-checkpoint), but got none")
    configs = {'student': load_config(student_cfg), **({} if foreign else {'teacher': load_config(teacher_cfg)})}
    inputs = tuple(Path(path) for path in (student_cfg, teacher_cfg, checkpoint or '') if Path(path).is_file())
    prompt_out = out if stage == 'prompt' else out.with_name(f'{out.stem}_prompt{out.suffix}')
    kind = f'_{mode}' if mode else ''  # a prompt of one kind is not for a loss that needs another
    stage1_dir = Path(prompt_dir or f'work_dirs/{prompt_out.stem}{kind}')
    if stage == 'prompt':
        del configs['student']
    for role, cfg in configs.items():
        # A teacher that was distilled is its student alone, except in its own training, which stage 1 follows.
        if is_distilled(cfg.get('model') or {}) and (role == 'student' or trains):
            raise ValueError(f"{role} should be a plain model's config, but {cfg.filename} is that of a distillation")
    taps = {'student': features[0], 'teacher': features[-1]} if features else {}
    built = {role: build_empty(cfg) for role, cfg in configs.items()}
    if foreign:
        built['teacher'] = build_teacher(options)[0]
        taps['teacher'] = features[1] if len(features) > 1 else 'backbone'
    probed, size = probe_models(built, config_size(next(iter(configs.values()))), size, taps)
    student, teacher = probed[0] if stage != 'prompt' else None, probed[-1]
    if student is not None and foreign and not features:
        student = at_level_of(student, teacher)
    compares = any(METHODS[name].on_features for name in names)
    heads = compares and student is not None and student.outputs.classified and teacher.outputs.classified
    for option, asked, used in (
        ('--prompt-iters', prompt_iters is not None, trains),
        ('--prompt-dir', prompt_dir is not None, trains),
        ('--prompt', prompt is not None, stage != 'prompt'),
        ('--features', features, compares),
        ('a tap of the student in --features', len(features) > 1, stage != 'prompt'),
        ('--inherit', inherit, stage != 'prompt'),
        ('--no-inherit', inherit is None, stage != 'prompt'),
        ('--no-head', not head, heads),
        ('--unlabelled', unlabelled is not None, stage != 'prompt'),
    ):
        if asked and not used:
            raise ValueError(f'{option} should change what is written, but does not with --method {method} here')
    if check:
        own = None if foreign else checkpoint
        _check_inputs(student.model if student else None, teacher.model, own, prompt, modes, list(configs.values()))
    files: dict[Path, str] = {}
    if trains:
        probe_size = size if size != (SMALL, SMALL) else None
        hook: dict[str, Any] = {'mode': mode, 'max_iters': prompt_iters, 'probe_size': probe_size}
        style = Style(teacher_cfg, prompt_out)
        files[prompt_out] = prompt_source(style, options['checkpoint'], teacher.trained, stage1_dir, hook)
    if student is None:
        return Plan(files, inputs, (teacher,))
    wiring = find_wiring(student, teacher, head)
    style = Style(student_cfg, out)
    file = style.file(prompt) if prompt else str(stage1_dir / PROMPT_FILE)
    entries = method_entries(method, wiring)
    for loss in (entries[name]['loss'] for name in (prompted(method) if trains or prompt is not None else ())):
        loss['prompt'] = wiring.prompt_option(file, loss)
    if check:
        _compare_classes(configs['student'], teacher.model, entries)
    modules = choose_modules(student.model, teacher.model, inherit) if inherit is not None else []
    stage1 = prompt_out if files else None
    files[out] = distill_source(style, options, method, wiring, entries, stage1, file, size, modules, unlabelled)
    return Plan(files, inputs, (student, teacher), wiring, compares)


def _check_inputs(
    student: nn.Module | None,
    teacher: nn.Module,
    checkpoint: str | None,
    prompt: str | None,
    modes: dict[str, str],
    configs: Sequence[Config],
) -> None:
    """Raises errors that training would find later; warns if teacher and student look swapped."""
    # The teacher gets its weights, unless it has them (no checkpoint); a URL is checked if its file is in the cache.
    # The student is None for stage 1 alone.
    if checkpoint is not None and is_here(checkpoint):
        with hint_if_swapped(student, checkpoint):
            load_weights(teacher, checkpoint)
    if student is not None:
        warn_if_swapped(student, teacher)
    if prompt is not None:
        file = load_prompt(prompt)
        kinds = {mode: f'grouping {own["grouping"]!r}, evidence {own["evidence"]!r}' for mode, own in MODES.items()}
        found = f'grouping {file.grouping!r}, evidence {file.evidence!r}'
        for name, mode in modes.items():
            if found != kinds[mode]:
                known = [f', as mode={other!r} makes it' for other, kind in kinds.items() if kind == found]
                raise ValueError(
                    f'--prompt should be of mode={mode!r} ({kinds[mode]}) for {name}, but {prompt} has '
                    f'{found}{"".join(known)}: leave --prompt out to train one, or use --no-check'
                )
        if checkpoint is not None and is_here(checkpoint):
            check_prompt(f'the prompt {prompt}', file, checkpoint)
    check_data(configs[0])


def _compare_classes(cfg: Config, teacher: nn.Module, entries: Entries) -> None:
    """Raises an error if a loss on class scores would find no class that data and teacher share, as training does."""
    scores = []
    for name, entry in entries.items():
        if entry['loss']['type'].startswith('freekd_mm.') and MODELS.get(entry['loss']['type']).target == 'logits':
            losses = [build_component(entry['loss'], f"loss of distill '{name}'")]
            scores.append(SimpleNamespace(name=name, logits=True, losses=losses, through=entry.get('through')))
    if scores:
        check_classes(data_classes(cfg), named_classes(teacher), scores)
