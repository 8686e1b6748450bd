"""Finds errors that are visible before anything is built or trained."""

from __future__ import annotations

import inspect
from difflib import get_close_matches
from typing import Any

from mmengine.config import Config
from mmengine.registry import HOOKS, MODELS
from mmengine.runner import Runner

from freekd_mm.engine.data_checks import check_files
from freekd_mm.engine.distributed import unwrapped_model
from freekd_mm.registry import HOOKS as OUR_HOOKS
from freekd_mm.registry import MODELS as OUR_MODELS
from freekd_mm.registry import SCOPE
from freekd_mm.runtime.compatibility import check_classes
from freekd_mm.runtime.components import check_component
from freekd_mm.runtime.config import find_model, is_distilled

#: Settings that a config need not have.
TOP = (*inspect.signature(Runner).parameters, 'reliability', 'compile', 'find_unused_parameters', 'model_wrapper_cfg')


def check_config(cfg: Config) -> None:
    """Raises an error for misspelt options of our parts, and for data files that do not exist."""
    if is_distilled(cfg.get('model') or {}):
        check_component(cfg.model, 'model', MODELS, OUR_MODELS)
    find_model(cfg)
    for hook in cfg.get('custom_hooks') or []:
        if isinstance(hook, dict) and str(hook.get('type')).startswith(f'{SCOPE}.'):
            options = {key: value for key, value in hook.items() if key != 'priority'}
            check_component(options, 'hook of custom_hooks', HOOKS, OUR_HOOKS)
    check_files(cfg)


def check_keys(cfg: Config, given: dict[str, Any], what: str = '--cfg-options') -> None:
    """Raises an error for keys of settings that look like a typo: one letter off, or unknown at the top."""
    for key in given:
        parts = key.split('.')
        place: Any = {**dict.fromkeys(TOP), **cfg._cfg_dict}
        for index, part in enumerate(parts):
            if not isinstance(place, (dict, list, tuple)):
                break
            inner = {str(number): item for number, item in enumerate(place)} if not isinstance(place, dict) else place
            near = get_close_matches(part, inner, n=1, cutoff=0.8)
            if part not in inner and (near or index == 0):
                hint = f" Did you mean '{'.'.join((*parts[:index], near[0]))}'?" if near else ''
                free = ' --no-check takes any key' if what.startswith('--') else ''
                raise ValueError(f'{what} should name settings of the config, but got {key!r}.{hint}{free}')
            place = inner.get(part)


def compare_classes(runner: Any) -> None:
    """Compares the classes of the training data, whose loader is built, with the teacher's, if there is a teacher."""
    model = unwrapped_model(runner)
    dataset = getattr(getattr(runner, '_train_dataloader', None), 'dataset', None)
    classes = (getattr(dataset, 'metainfo', None) or {}).get('classes')
    if hasattr(model, 'distillation') and classes is not None:
        entries = model.distillation.entries.values()
        for teacher in model.distillation.teachers.values():
            check_classes(tuple(classes), teacher.classes, [entry for entry in entries if entry.teacher is teacher])
