"""One screen before a training: its data, what is distilled, where results go; and soon after the start, its time."""

from __future__ import annotations

import copy
import textwrap
import time
from collections import Counter
from typing import Any

import numpy as np
from mmengine.hooks import Hook
from mmengine.registry import DATASETS

from freekd_mm.engine.distributed import unwrapped_model
from freekd_mm.log import say
from freekd_mm.progress import format_seconds

#: Annotations that are counted, and label maps that are read, at most.
BOXES, MAPS = 20000, 20
#: Iterations before the time is taken, and while it is taken.
FIRST, TIMED = 3, 10
WIDTH = 110


def show_overview(runner: Any) -> None:
    """Prints the screen, and soon after the start the expected time; the training's data loader is built."""
    lines = [('train', _data(getattr(runner._train_dataloader, 'dataset', None)))]
    if isinstance(runner._val_dataloader, dict):
        lines.append(('val', _data(DATASETS.build(copy.deepcopy(runner._val_dataloader['dataset'])))))
    for entry in getattr(getattr(unwrapped_model(runner), 'distillation', None), 'entries', {}).values():
        taps = [', '.join(map(str, taps)) for taps in (entry.student_taps, entry.teacher_taps)]
        loss = type(entry.losses[0]).__name__
        lines.append((f'distils {entry.name}', f'{taps[0]} of the student, {taps[1]} of the teacher, with {loss}'))
    lines += [('results', str(runner.work_dir)), ('log', str(runner.log_dir))]
    shown = [textwrap.fill(f'{name}: {text}', WIDTH, subsequent_indent='    ') for name, text in lines]
    say('\n'.join(('before the training', *shown)))
    runner.register_hook(ExpectedTimeHook(), priority='LOWEST')


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


class ExpectedTimeHook(Hook):
    """Prints how long the training will take, when the time per iteration is steady."""

    def __init__(self) -> None:
        self._done = 0
        self._since = 0.0

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Takes the time."""
        self._done += 1
        if self._done == FIRST:
            self._since = time.monotonic()
        elif self._done == FIRST + TIMED:
            step, left = (time.monotonic() - self._since) / TIMED, runner.max_iters - runner.iter - 1
            text = f'{left} iterations of {step:.2f} s to go: {format_seconds(step * left)}, and the evaluations'
            say(f'expected time: {text}')
