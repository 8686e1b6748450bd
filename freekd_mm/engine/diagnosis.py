"""Says what is not finite in a training step, and where."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from freekd_mm.runtime.probe import eval_mode
from freekd_mm.runtime.rng import isolated_rng
from freekd_mm.runtime.teacher import forward_features
from freekd_mm.text import some


def diagnose(model: nn.Module, losses: dict[str, Any], batch: Any) -> str:
    """Returns what is not finite: losses (or their terms), features, images, or gradients; '' if all is finite."""
    images = image_files(batch)
    parts = [*_losses(model, losses), *_features(model, batch, images)] or _gradients(model)
    seen = some(dict.fromkeys(images), 8) if images else 'unknown'
    return f'{"; ".join(parts)}. Images of the batch: {seen}.' if parts else ''


def image_files(batch: Any) -> list[str]:
    """Returns the image files of a batch, in order."""
    if isinstance(batch, dict):
        batch = batch.get('data_samples', list(batch.values()))
        return image_files(list(batch.values()) if isinstance(batch, dict) else batch)
    if isinstance(batch, (list, tuple)):
        return [file for item in batch for file in image_files(item)]
    file = getattr(batch, 'img_path', None)
    return [str(file)] if file else []


def _is_finite(value: Any) -> bool:
    if isinstance(value, Tensor):
        return bool(torch.isfinite(value).all())
    return all(map(_is_finite, value)) if isinstance(value, (list, tuple)) else True


def _losses(model: nn.Module, losses: dict[str, Any]) -> list[str]:
    bad = [key for key, value in losses.items() if not _is_finite(value)]
    parts = []
    for name, entry in getattr(getattr(model, 'distillation', None), 'entries', {}).items():
        terms = [_place(key[len(f'distill.{name}.') :]) for key in bad if key.startswith(f'distill.{name}.')]
        if terms or f'distill.loss_{name}' in bad:
            where = f'at {some(dict.fromkeys(terms), 8)}' if terms else 'at no single level'
            parts.append(f"the loss of distill '{name}' ({type(entry.losses[0]).__name__}) is not finite {where}")
    own = [key for key in bad if 'loss' in key and not key.startswith('distill.')]
    if own:
        parts.append(f"the student's own {some(own, 8)} {'is' if len(own) == 1 else 'are'} not finite")
    return parts


def _place(term: str) -> str:
    """Returns ``'level0/low'`` as ``'level 0, band low'``."""
    return re.sub(r'^level(\d+)/', r'level \1, band ', re.sub(r'^level(\d+)$', r'level \1', term))


def _features(model: nn.Module, batch: Any, images: Sequence[str]) -> list[str]:
    """Runs student and teacher once more, and looks at what the losses compare."""
    distillation: Any = getattr(model, 'distillation', None)
    preprocess: Any = getattr(model, 'data_preprocessor', None)
    if batch is None or preprocess is None:
        return []
    parts = []
    try:
        with isolated_rng(), torch.no_grad(), eval_mode(model):
            data = preprocess(copy.deepcopy(batch), True)
            inputs, samples = data['inputs'], data['data_samples']
            parts += _tensors('the input', [inputs], images)
            if distillation is None:
                return parts
            entries = list(distillation.entries.values())
            distillation.run_teachers(entries, inputs, samples)
            with distillation.student_recorder:
                forward_features(model, inputs, samples)
            seen = [('student', distillation.student_recorder, tap) for entry in entries for tap in entry.student_taps]
            seen += [(entry.teacher_name, entry.teacher, tap) for entry in entries for tap in entry.teacher_taps]
            for role, recorder, tap in dict.fromkeys(seen):
                parts += _tensors(f"the {role}'s '{tap}'", recorder.levels([tap]), images)
    except Exception as error:  # a second look must not hide what was seen first
        parts.append(f'the features could not be checked again ({type(error).__name__}: {error})')
    finally:
        if distillation is not None:
            distillation.clear()
    return parts


def _tensors(what: str, levels: Sequence[Tensor], images: Sequence[str]) -> list[str]:
    parts = []
    for index, level in enumerate(levels):
        bad = ~torch.isfinite(level).flatten(1).all(1) if level.dim() > 1 else ~torch.isfinite(level)
        if not bool(bad.any()):
            continue
        where = f' at level {index}' if len(levels) > 1 else ''
        of = [image for image, is_bad in zip(images, bad.tolist()) if is_bad]
        parts.append(f'{what} is not finite{where}' + (f' for {some(dict.fromkeys(of), 8)}' if of else ''))
    return parts


def _gradients(model: nn.Module) -> list[str]:
    bad = [name for name, p in model.named_parameters() if p.grad is not None and not _is_finite(p.grad)]
    return [f'the losses are finite, but the gradient is not at {some(bad, 4)}'] if bad else []
