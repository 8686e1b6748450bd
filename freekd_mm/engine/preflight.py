"""Before a training: errors that are visible already, and one screen about data and distillation."""

from __future__ import annotations

import copy
import inspect
import json
import os
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.registry import DATASETS, HOOKS, MODELS
from mmengine.runner import Runner

from freekd_mm.checks import did_you_mean
from freekd_mm.engine.distributed import unwrapped_model
from freekd_mm.log import say, warn
from freekd_mm.registry import HOOKS as OUR_HOOKS
from freekd_mm.registry import MODELS as OUR_MODELS
from freekd_mm.registry import SCOPE
from freekd_mm.runtime.compatibility import check_classes
from freekd_mm.runtime.config import check_component, find_model, is_distilled
from freekd_mm.text import some

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


LOADERS = ('train_dataloader', 'val_dataloader')
LOCAL = (None, 'local', 'disk')
SAMPLE = 50


def check_files(cfg: Config) -> None:
    """Raises an error for data files and folders that do not exist."""
    for name, _, places in _local_datasets(cfg):
        for key, place in places.items():
            path = Path(place)
            # A prefix may be the beginning of file names: then its folder must exist.
            is_prefix = key != 'ann_file' and not place.endswith('/') and path.parent.is_dir()
            if not path.exists() and not is_prefix:
                raise FileNotFoundError(f'{key} of {name} should be there, but got {str(path)!r}; {_nearest(path)}')


def check_data(cfg: Config) -> None:
    """Raises an error for data that cannot train: missing, broken or empty files, classes that match nothing."""
    check_files(cfg)
    for name, dataset, named in _local_datasets(cfg):
        try:
            kind = dataset_class(dataset, cfg.get('default_scope'))
        except ImportError as error:  # a data set of a package that is not here
            warn(f'the data were not checked: {error}')
            continue
        places = {key: Path(place) for key, place in named.items()}
        annotations = places.get('ann_file')
        if annotations is not None and annotations.is_file():
            if annotations.stat().st_size == 0:
                raise ValueError(f'ann_file of {name} should hold annotations, but {str(annotations)!r} is empty')
            if annotations.suffix == '.json':
                _check_coco(name, annotations, classes_of(dataset, kind), places.get('data_prefix.img'))
        elif annotations is None and 'data_prefix.img_path' in places:
            _check_label_maps(name, dataset, kind, places)


def _local_datasets(cfg: Config) -> Iterator[tuple[str, dict, dict[str, str]]]:
    """Yields the data sets that read local files, also within wrappers: their loader, config, and what it names."""
    for name in LOADERS:
        loader = cfg.get(name)
        found: list[Any] = [loader.get('dataset')] if isinstance(loader, dict) else []
        while found:
            dataset = found.pop(0)
            if isinstance(dataset, (list, tuple)):
                found += dataset
            elif isinstance(dataset, dict):
                found += [dataset.get('dataset'), dataset.get('datasets')]
                backend = dataset.get('backend_args') or dataset.get('file_client_args') or {}
                if backend.get('backend') in LOCAL:
                    yield name, dataset, _places(dataset)


def _places(dataset: dict) -> dict[str, str]:
    """Returns the local files and folders that a data set names, by the names of its options."""
    root = str(dataset.get('data_root') or '')
    prefix = dataset.get('data_prefix')
    prefixes = prefix.items() if isinstance(prefix, dict) else ()
    named = {'ann_file': dataset.get('ann_file'), **{f'data_prefix.{key}': value for key, value in prefixes}}
    return {
        key: os.path.join(root, value)
        for key, value in named.items()
        if isinstance(value, str) and value and '://' not in value + root
    }


def _nearest(path: Path) -> str:
    """Says which part of a path exists, and what is there."""
    parent = path
    while not parent.exists():
        missing, parent = parent.name, parent.parent
    if not parent.is_dir():
        return f'{parent} is no folder.'
    names = sorted(item.name for item in parent.iterdir())
    return f'{parent.absolute()} has {some(names, 8) if names else "nothing in it"}.{did_you_mean(missing, names)}'


def dataset_class(dataset: dict, scope: str | None) -> Any:
    """Returns the class of a data set, None if its package or module is not installed."""
    kind = dataset.get('type')
    if not isinstance(kind, str):
        return kind
    with DATASETS.switch_scope_and_registry(scope) as registry:
        return registry.get(kind)


def classes_of(dataset: dict, kind: Any) -> Sequence[str]:
    """Returns the classes of a data set: the config's, else those of its class."""
    own = (dataset.get('metainfo') or {}).get('classes')
    classes = own or (getattr(kind, 'METAINFO', None) or {}).get('classes') or ()
    return (classes,) if isinstance(classes, str) else classes


def _check_coco(name: str, path: Path, classes: Sequence[str], folder: Path | None) -> None:
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except ValueError as error:
        raise ValueError(f'ann_file of {name} should be JSON, but {str(path)!r} is broken: {error}') from error
    if not isinstance(content, dict) or not {'images', 'annotations', 'categories'} <= content.keys():
        return
    if not content['images'] or not content['annotations']:
        raise ValueError(
            f'ann_file of {name} should hold images with annotations, but {str(path)!r} has '
            f'{len(content["images"])} images and {len(content["annotations"])} annotations'
        )
    known = [str(category['name']) for category in content['categories']]
    missing = [label for label in classes if label not in known]
    capitals = {label.lower(): label for label in known}
    hints = [f'{label!r} is {capitals[label.lower()]!r} there' for label in missing if label.lower() in capitals]
    text = (
        f'classes of {name} should be among the categories of {str(path)!r}, but {", ".join(map(repr, missing[:6]))} '
        f'of {len(classes)} are not; it has {", ".join(known[:8])}'
    )
    if hints or (missing and len(missing) == len(classes)):
        capital = f'. Capitals matter: {", ".join(hints[:3])}' if hints else ''
        raise ValueError(f'{text}{capital}. Set metainfo=dict(classes=...) in the data set')
    if missing:
        warn(text)
    if folder is not None:
        _check_sample(name, [folder / str(image['file_name']) for image in content['images']], 'images')


def _check_label_maps(name: str, dataset: dict, kind: Any, places: dict[str, Path]) -> None:
    """Looks for the label maps of a segmentation data set, which have the names of its images with another suffix."""

    def suffix(key: str, default: str) -> str:
        option = inspect.signature(kind).parameters.get(key) if kind is not None else None
        own = option.default if option is not None and isinstance(option.default, str) else default
        return str(dataset.get(key) or own)

    folder, ending = places['data_prefix.img_path'], suffix('img_suffix', '.jpg')
    images = sorted(folder.rglob(f'*{ending}')) if folder.is_dir() else []
    if not images:
        raise FileNotFoundError(f'data_prefix.img_path of {name} should hold images *{ending}, but {folder} has none')
    maps = places.get('data_prefix.seg_map_path')
    if maps is not None:
        to = suffix('seg_map_suffix', '.png')
        stems = [str(image.relative_to(folder))[: -len(ending)] for image in images]
        _check_sample(name, [maps / f'{stem}{to}' for stem in stems], 'label maps')


def _check_sample(name: str, files: Sequence[Path], what: str) -> None:
    """Raises an error if some of a sample of files are missing."""
    sample = files[:: max(1, len(files) // SAMPLE)][:SAMPLE]
    missing = [path for path in sample if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f'{what} of {name} should be there, but {len(missing)} of {len(sample)} that were looked for are missing, '
            f'for example {str(missing[0])!r}; {_nearest(missing[0])}'
        )


#: Annotations that are counted, and label maps that are read, at most.
BOXES, MAPS = 20000, 20
WIDTH = 110


def show_overview(runner: Any) -> None:
    """Prints the screen; the training's data loader is built."""
    lines = [('train', _data(getattr(runner._train_dataloader, 'dataset', None)))]
    if isinstance(runner._val_dataloader, dict):
        lines.append(('val', _data(DATASETS.build(copy.deepcopy(runner._val_dataloader['dataset'])))))
    for entry in getattr(getattr(unwrapped_model(runner), 'distillation', None), 'entries', {}).values():
        taps = [', '.join(map(str, taps)) for taps in (entry.student_taps, entry.teacher_taps)]
        loss = type(entry.losses[0]).__name__
        lines.append(
            (f'distils {entry.name}', f'{taps[0]} of the student, {taps[1]} of the {entry.teacher_name}, with {loss}')
        )
    lines += [('results', str(runner.work_dir)), ('log', str(runner.log_dir))]
    shown = [textwrap.fill(f'{name}: {text}', WIDTH, subsequent_indent='    ') for name, text in lines]
    say('\n'.join(('before the training', *shown)))


def _data(dataset: Any) -> str:
    """Returns how many images a data set has and of which sizes, and boxes or pixels per class."""
    if dataset is None:
        return 'unknown'
    text = f'{len(dataset)} images'
    if hasattr(dataset, 'unlabelled'):
        text += f' and {len(dataset.unlabelled)} without labels'
    while not hasattr(dataset, 'get_data_info') and hasattr(dataset, 'dataset'):
        dataset = dataset.dataset
    if not hasattr(dataset, 'get_data_info') or not len(dataset):
        return text
    first = dataset.get_data_info(0)
    is_maps = 'instances' not in first and bool(first.get('seg_map_path'))
    step = -(-len(dataset) // (MAPS if is_maps else BOXES))
    sizes: set[tuple] = set()
    counts: Counter = Counter()
    for index in range(0, len(dataset), step):
        size, labels = (_pixels if is_maps else _boxes)(dataset, dataset.get_data_info(index))
        sizes.add(size)
        counts.update(labels)
    by_area = sorted(sizes - {(None, None)}, key=lambda size: size[0] * size[1])
    ends = ' to '.join(dict.fromkeys(f'{width}x{height}' for width, height in (*by_area[:1], *by_area[-1:])))
    total = max(sum(counts.values()), 1)
    names = (getattr(dataset, 'metainfo', None) or {}).get('classes') or ()
    per_class = [f'{n} {counts[i] / total:.1%}' if is_maps else f'{n} {counts[i]}' for i, n in enumerate(names)]
    of = f' of {ends}' if ends else ''
    sample = f' (every {step}th image)' if step > 1 else ''
    what = 'pixels' if is_maps else 'boxes'
    return f'{text}{of}; {what} per class{sample}: {", ".join(per_class) or "no classes are named"}'


def _boxes(dataset: Any, info: dict) -> tuple[tuple, Counter]:
    boxes = (box['bbox_label'] for box in info.get('instances', ()) if not box.get('ignore_flag'))
    return (info.get('width'), info.get('height')), Counter(boxes)


def _pixels(dataset: Any, info: dict) -> tuple[tuple, Counter]:
    load = next(step for step in dataset.pipeline.transforms if type(step).__name__ == 'LoadAnnotations')
    labels = load(info)['gt_seg_map']
    values, pixels = np.unique(labels[labels != dataset.ignore_index], return_counts=True)
    return labels.shape[::-1], Counter(dict(zip(values.tolist(), pixels.tolist())))
