"""What can be known to be wrong before anything is built or trained."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import HOOKS, MODELS

from freekd_mm.checks import did_you_mean
from freekd_mm.engine.distributed import unwrapped_model
from freekd_mm.registry import HOOKS as OUR_HOOKS
from freekd_mm.registry import MODELS as OUR_MODELS
from freekd_mm.registry import SCOPE
from freekd_mm.runtime.compatibility import check_classes
from freekd_mm.runtime.components import check_component
from freekd_mm.runtime.config import is_distilled

LOADERS = ('train_dataloader', 'val_dataloader')
LOCAL = (None, 'local', 'disk')


def check_config(cfg: Config) -> None:
    """Raises for misspelt options of our parts, and for data files that are not there."""
    if is_distilled(cfg.model):
        check_component(cfg.model, 'model', MODELS, OUR_MODELS)
    for hook in cfg.get('custom_hooks') or []:
        if isinstance(hook, dict) and str(hook.get('type')).startswith(f'{SCOPE}.'):
            options = {key: value for key, value in hook.items() if key != 'priority'}
            check_component(options, 'hook of custom_hooks', HOOKS, OUR_HOOKS)
    for name in LOADERS:
        loader = cfg.get(name)
        if isinstance(loader, dict):
            for dataset in _datasets(loader.get('dataset')):
                _check_files(dataset, name)


def _datasets(dataset: Any) -> Iterator[dict]:
    """Yields the configs of data sets that read files, also within wrappers."""
    if isinstance(dataset, (list, tuple)):
        for part in dataset:
            yield from _datasets(part)
    elif isinstance(dataset, dict):
        yield dataset
        yield from _datasets(dataset.get('dataset'))
        yield from _datasets(dataset.get('datasets'))


def _check_files(dataset: dict, loader: str) -> None:
    backend = dataset.get('backend_args') or dataset.get('file_client_args') or {}
    if backend.get('backend') not in LOCAL:
        return
    root = str(dataset.get('data_root') or '')
    places = {'ann_file': dataset.get('ann_file')}
    prefix = dataset.get('data_prefix')
    if isinstance(prefix, dict):
        places.update({f'data_prefix.{key}': value for key, value in prefix.items()})
    for key, value in places.items():
        if not isinstance(value, str) or not value or '://' in value or '://' in root:
            continue
        path = Path(root, value)
        # A prefix may be the beginning of file names: then its folder has to be there.
        if path.exists() or (key != 'ann_file' and not value.endswith('/') and path.parent.is_dir()):
            continue
        raise FileNotFoundError(f'{key} of {loader} should be there, but got {str(path)!r}; {_nearest(path)}')


def _nearest(path: Path) -> str:
    """Says how much of a path exists, and what is there instead."""
    parent = path
    while not parent.exists():
        missing, parent = parent.name, parent.parent
    if not parent.is_dir():
        return f'{parent} is no folder.'
    names = sorted(item.name for item in parent.iterdir())
    listed = ', '.join(names[:8]) + (' ...' if len(names) > 8 else '')
    return f'{parent.absolute()} has {listed or "nothing in it"}.{did_you_mean(missing, names)}'


def compare_classes(runner: Any) -> None:
    """Compares the classes of the training data with the teacher's, where there is a teacher.

    Args:
        runner: A runner that has not trained yet, its training data loader built.
    """
    model = unwrapped_model(runner)
    dataset = getattr(getattr(runner, '_train_dataloader', None), 'dataset', None)
    classes = (getattr(dataset, 'metainfo', None) or {}).get('classes')
    if hasattr(model, 'distillation') and classes is not None:
        distillation = model.distillation
        check_classes(tuple(classes), distillation.teacher.classes, distillation.entries.values())
