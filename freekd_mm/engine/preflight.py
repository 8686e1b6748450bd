"""Before a training: errors that are visible already, and one screen about data and distillation."""

from __future__ import annotations

import inspect
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS, HOOKS, MODELS
from mmengine.runner import Runner

from freekd_mm.checks import beside, check_file
from freekd_mm.engine.distributed import build_training_data, unwrapped_model
from freekd_mm.log import quiet, say, warn
from freekd_mm.registry import HOOKS as OUR_HOOKS
from freekd_mm.registry import MODELS as OUR_MODELS
from freekd_mm.registry import SCOPE
from freekd_mm.runtime.compatibility import check_classes
from freekd_mm.runtime.config import check_component, default_scope, find_model, is_distilled, type_name
from freekd_mm.text import some

#: Settings that a config need not have.
TOP = (*inspect.signature(Runner).parameters, 'reliability', 'compile', 'find_unused_parameters', 'model_wrapper_cfg')


def check_config(cfg: Config) -> None:
    """Raises an error for misspelt options of our parts."""
    if is_distilled(cfg.get('model') or {}):
        check_component(cfg.model, 'model', MODELS, OUR_MODELS)
    find_model(cfg)
    for hook in cfg.get('custom_hooks') or []:
        if isinstance(hook, dict) and str(hook.get('type')).startswith(f'{SCOPE}.'):
            options = {key: value for key, value in hook.items() if key != 'priority'}
            check_component(options, 'hook of custom_hooks', HOOKS, OUR_HOOKS)


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
    """Compares the classes of the training data with the teacher's, if there is a teacher."""
    model = unwrapped_model(runner)
    if hasattr(model, 'distillation'):
        build_training_data(runner)
    dataset = getattr(getattr(runner, '_train_dataloader', None), 'dataset', None)
    classes = (getattr(dataset, 'metainfo', None) or {}).get('classes')
    if hasattr(model, 'distillation') and classes is not None:
        entries = model.distillation.entries.values()
        for teacher in model.distillation.teachers.values():
            check_classes(tuple(classes), teacher.classes, [entry for entry in entries if entry.teacher is teacher])


LOCAL = (None, 'local', 'disk')
#: Files that are looked for, and label maps that are read, at most.
SAMPLE, MAPS = 50, 20
WIDTH = 110


def check_data(cfg: Config) -> list[tuple[str, str]]:
    """Reads the local data as the training will; raises an error where it cannot train with them.

    Returns:
        ``('train' or 'val', text)`` for each data set: its images and their sizes, boxes or pixels per class.
    """
    lines = []
    for split in ('train', 'val'):
        name = f'{split}_dataloader'
        bare: list[str | None] = []
        for config in _datasets((cfg.get(name) or {}).get('dataset')):
            try:
                dataset = _load(name, config, cfg.get('default_scope'))
            except ImportError as error:  # a data set of a package that is not here
                warn(f'the data were not checked: {error}')
                continue
            bare.append(None if dataset is None else _without_annotations(name, dataset))
            if dataset is not None and dataset.data_list:
                _check_classes(name, dataset)
                _check_images(name, dataset)
                text, counts = _overview(dataset)
                lines.append((split, text))
                if split == 'train' and counts:
                    _check_labels(dataset, max(counts), cfg)
        for text in filter(None, bare):
            if all(bare):
                raise ValueError(text)
            warn(text)
    return lines


def _datasets(config: Any) -> Iterator[dict]:
    """Yields the configs of data sets that read local files, also within wrappers."""
    if isinstance(config, (list, tuple)):
        for part in config:
            yield from _datasets(part)
    elif isinstance(config, dict):
        wrapped = [config[key] for key in ('dataset', 'datasets') if key in config]
        if wrapped:
            yield from _datasets(wrapped)
        elif (config.get('backend_args') or {}).get('backend') in LOCAL and '://' not in str(
            [config.get(key) for key in ('data_root', 'ann_file', 'data_prefix')]
        ):
            yield config


def data_classes(cfg: Config) -> tuple[str, ...] | None:
    """Returns the classes of local training data, None where only a training knows them."""
    with suppress(ImportError, TypeError), default_scope(cfg.get('default_scope')):  # as in check_data
        for config in _datasets((cfg.get('train_dataloader') or {}).get('dataset')):
            classes = getattr(DATASETS.build({**config, 'lazy_init': True}), 'metainfo', {}).get('classes')
            return classes and tuple(classes)
    return None


def _load(name: str, config: dict, scope: str | None) -> Any:
    """Returns a data set that holds its annotations as ``data_list``; None if it does not work as mmengine's own."""
    with default_scope(scope), DATASETS.switch_scope_and_registry(None) as registry:
        kind = config.get('type')
        kind = registry.get(kind) if isinstance(kind, str) else kind
        if not (inspect.isclass(kind) and issubclass(kind, BaseDataset)):
            return None
        try:
            dataset: Any = registry.build({**config, 'lazy_init': True, 'serialize_data': False})
        except TypeError:  # a class without these options
            return None
    if dataset.serialize_data:
        return None
    if dataset.ann_file and not Path(dataset.ann_file).is_dir():
        check_file(f'ann_file of {name}', dataset.ann_file)
    read: dict[str, Any] = {}
    if hasattr(dataset, 'COCOAPI'):  # it drops the file's content, whose categories are looked at below
        api, dataset.COCOAPI = dataset.COCOAPI, lambda file: read.setdefault('coco', api(file))
    try:
        with quiet():
            dataset.full_init()
    except ImportError:
        raise
    except Exception as error:
        why = f'the key {error} is missing' if isinstance(error, KeyError) else error
        raise ValueError(f'{name} should have data that can be read, but {_source(dataset)} cannot: {why}') from error
    dataset.categories = [str(category['name']) for category in read['coco'].dataset['categories']] if read else None
    return dataset


def _source(dataset: Any) -> str:
    return repr(str(dataset.ann_file or dataset.data_prefix.get('img_path')))


def _without_annotations(name: str, dataset: Any) -> str | None:
    """Says that no image of a data set has an annotation; one part of the data may be so."""
    if any(info.get('instances', True) for info in dataset.data_list):
        return None
    text = f'{name} should have images with annotations, but {_source(dataset)} has none'
    return f'{text} for its classes, suffixes and filter_cfg'


def _check_classes(name: str, dataset: Any) -> None:
    """Raises an error for a name of two classes, and if no class, or one but for its capitals, is in a COCO file."""
    classes, known = list(dataset.metainfo.get('classes') or ()), dataset.categories
    twice = [label for label in dict.fromkeys(classes) if max(classes.count(label), (known or []).count(label)) > 1]
    if twice:
        where = f'{name} and categories of {_source(dataset)}'
        raise ValueError(f'classes of {where} should have different names, but {some(twice)} is there more than once')
    missing = [label for label in classes if label not in known] if known is not None else []
    if not missing:
        return
    alike = [label for label in known if label.lower() in map(str.lower, missing)]
    text = (
        f'classes of {name} should be among the categories of {_source(dataset)}, but {some(missing)} of '
        f'{len(classes)} are not; it has {some(alike or known)}'
    )
    if alike or len(missing) == len(classes):
        capitals = ' (capitals matter)' if alike else ''
        raise ValueError(f'{text}{capitals}. Set metainfo=dict(classes=...) in the data set')
    warn(text)


def _check_images(name: str, dataset: Any) -> None:
    """Raises an error if some of a sample of files are missing."""
    infos = dataset.data_list
    for key, what in (('img_path', 'images'), ('seg_map_path', 'label maps')):
        sample = [Path(info[key]) for info in infos[:: len(infos) // SAMPLE + 1] if info.get(key)]
        missing = [path for path in sample if not path.is_file()]
        if missing:
            raise FileNotFoundError(
                f'{what} of {name} should be there, but {len(missing)} of {len(sample)} that were looked for are '
                f'missing, for example {str(missing[0])!r}{beside(missing[0])}'
            )


def _check_labels(dataset: Any, highest: int, cfg: Config) -> None:
    """Raises an error for a label that is no class of the training data, or that the model's head does not score."""
    model = find_model(cfg)[0] if 'model' in cfg else {}
    heads = model.get('decode_head') or model.get('bbox_head') or (model.get('roi_head') or {}).get('bbox_head') or {}
    head = heads[-1] if isinstance(heads, (list, tuple)) else heads
    scored = {'classes of the training data': len(dataset.metainfo.get('classes') or ())}
    scored[f'num_classes of {type_name(head)}'] = head.get('num_classes') or 0
    for what, count in scored.items():
        if 0 < count <= highest:
            raise ValueError(f'{what} should be more than {highest}, a label of {_source(dataset)}, but got {count}')


def _overview(dataset: Any) -> tuple[str, Counter]:
    infos = dataset.data_list
    classes = dataset.metainfo.get('classes') or ()
    if 'instances' in infos[0]:
        sizes = {(info.get('width'), info.get('height')) for info in infos}
        labels = (box['bbox_label'] for info in infos for box in info['instances'] if not box.get('ignore_flag'))
        counts = Counter(labels)
        what, shares = 'boxes per class', [f'{name} {counts[index]}' for index, name in enumerate(classes)]
    else:
        sample = infos[:: -(-len(infos) // MAPS)]
        sizes, counts = _pixels(dataset, sample)
        total = max(sum(counts.values()), 1)
        what = f'pixels per class in {len(sample)} of them'
        shares = [f'{name} {counts[index] / total:.1%}' for index, name in enumerate(classes)]
    by_area = sorted(sizes - {(None, None)}, key=lambda size: size[0] * size[1])
    ends = ' to '.join(dict.fromkeys(f'{width}x{height}' for width, height in (*by_area[:1], *by_area[-1:])))
    of = f' of {ends}' if ends else ''
    return f'{len(infos)} images{of}; {what}: {", ".join(shares) or "no classes are named"}', counts


def _pixels(dataset: Any, infos: Sequence[dict]) -> tuple[set[tuple], Counter]:
    """Returns the sizes of label maps, and how many pixels each class has in them."""
    sizes: set[tuple] = set()
    counts: Counter = Counter()
    loads = [step for step in dataset.pipeline.transforms if type(step).__name__ == 'LoadAnnotations']
    for labels in (load(info)['gt_seg_map'] for load in loads for info in infos):
        if labels.ndim != 2:
            raise ValueError(
                f'label maps should hold one number for each pixel, but those of {_source(dataset)} are of the shape '
                f'{labels.shape}: convert colours to numbers of classes'
            )
        sizes.add(labels.shape[::-1])
        values, pixels = np.unique(labels[labels != getattr(dataset, 'ignore_index', 255)], return_counts=True)
        counts.update(dict(zip(values.tolist(), pixels.tolist())))
    return sizes, counts


def show_overview(runner: Any, data: Sequence[tuple[str, str]]) -> None:
    """Prints the screen; ``data`` is from :func:`check_data`."""
    lines = list(data)
    for entry in getattr(getattr(unwrapped_model(runner), 'distillation', None), 'entries', {}).values():
        student, teacher = (', '.join(map(str, taps)) for taps in (entry.student_taps, entry.teacher_taps))
        loss = type(entry.losses[0]).__name__
        text = f'{student} of the student, {teacher} of the {entry.teacher_name}, with {loss}'
        lines.append((f'distils {entry.name}', text))
    lines += [('results', str(runner.work_dir)), ('log', str(runner.log_dir))]
    shown = [textwrap.fill(f'{name}: {text}', WIDTH, subsequent_indent='    ') for name, text in lines]
    say('\n'.join(('before the training', *shown)))
