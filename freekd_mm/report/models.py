"""What the models of runs predict on the same pictures, and what was distilled."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from markupsafe import Markup
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.utils import import_modules_from_strings
from torch import nn

from freekd_mm.checkpoints.loading import load_checkpoint_file
from freekd_mm.checkpoints.sources import fetch, short_hash
from freekd_mm.compat.versions import zip_equal
from freekd_mm.log import quiet
from freekd_mm.pages.page import parts, picture
from freekd_mm.report.runs import Run, inside
from freekd_mm.runtime.config import default_scope, is_distilled
from freekd_mm.runtime.export import build_plain, some_samples
from freekd_mm.runtime.teacher import build_teacher, named_teachers
from freekd_mm.visualize.features import INIT, compare
from freekd_mm.visualize.page import view_parts

#: Boxes with a lower score are not drawn.
SCORE = 0.3
#: Small pictures are enlarged to this, so that lines are thin.
SIDE = 400
#: Colours of classes for data sets that define none.
COLORS = ((220, 60, 60), (60, 120, 220), (60, 170, 90), (230, 160, 40), (150, 90, 200), (40, 180, 190), (200, 90, 150))
#: Pictures for which bands, masks and weights are shown.
DISTILLED = 2
BEFORE = (
    'The same picture goes through teacher and student. "Before" is the student as its training starts, "after" is the '
    'distilled student; both are seen through their projections to the channels of the teacher.'
)


def shown_models(runs: Sequence[Run], count: int) -> list[tuple[str, list[Markup]]]:
    """Returns the sections with the predictions of all runs, and with what was distilled."""
    # This builds the models of the runs' configs, so use it only for your own runs. The pictures are evenly spread over
    # the test data of the first run.
    found = [(run, Config(run.config), run.checkpoint) for run in runs if run.config.get('model') and run.checkpoint]
    if not found:
        return [('Predictions', [parts.remark('No run has both a config and a checkpoint in its folder.')])]
    columns, files, teachers, sections = {}, {}, {}, []
    with quiet():
        for _, cfg, _ in found:
            import_modules_from_strings(**(cfg.get('custom_imports') or {'imports': []}))
        data, meta = some_samples(found[0][1], count)
        for run, cfg, checkpoint in found:
            files[run.name] = (run.folder, checkpoint)
            columns[run.name] = predict(build_plain(cfg, load_checkpoint_file(checkpoint), str(checkpoint))[0], data)
            if is_distilled(cfg.model):
                teachers.update(
                    {teacher.get('checkpoint'): teacher for teacher in named_teachers(cfg.model.teacher).values()}
                )
                views = [view_parts(*pair) for pair in compare(cfg, checkpoint, data[:DISTILLED], before=INIT)]
                sections.append((f'What was distilled: {run.name}', [parts.paragraph(BEFORE), *chain(*views)]))
        teachers.pop(None, None)  # random weights on purpose, or a library's own
        shown = {short_hash(checkpoint) for _, _, checkpoint in found}
        for source, teacher in teachers.items():
            model, file = build_teacher(teacher)[0], Path(fetch(str(source)))
            if hasattr(model, 'predict') and short_hash(file) not in shown:
                name = teacher.get('name', 'teacher')
                name = f'{name} {short_hash(file)}' if name in columns else name
                files[name], columns[name] = (file.parent, file), predict(model, data)
    sources = [f'{name}: {inside(folder, file)} ({short_hash(file)})' for name, (folder, file) in files.items()]
    explained = parts.remark(f'Pictures of the test data. {"; ".join(sources)}.')
    return [('Predictions', [explained, *side_by_side(columns, data, meta)]), *sections]


def predict(model: nn.Module, data: Sequence[Any]) -> list[Any]:
    """Returns the data samples with the predictions of a model."""
    scope = type(model).__module__.split('.')[0]
    with default_scope(scope), torch.no_grad():
        return [model.eval().test_step(pseudo_collate([copy.deepcopy(item)]))[0] for item in data]  # type: ignore[operator]


def side_by_side(columns: dict[str, list[Any]], data: Sequence[Any], meta: dict[str, Any]) -> list[Markup]:
    """Returns a row of pictures per image: the ground truth, then what each model predicts, by its name."""
    rows, colors = [], palette(meta)
    classes: set[int] = set()
    for index, item in enumerate(data):
        drawn = [('ground truth', draw(item['data_samples'], colors, truth=True))]
        drawn += [(label, draw(samples[index], colors)) for label, samples in columns.items()]
        figures = [picture(shown, f'{label}{boxes}', photo=True) for label, (shown, _, boxes) in drawn]
        rows.append(parts.pictures(figures, len(figures)))
        classes.update(*(own for _, (_, own, _) in drawn))
    names = dict(enumerate(meta.get('classes') or ()))
    legend = [(names.get(label, label), f'rgb{colors[label % len(colors)]}', '') for label in sorted(classes)]
    return [parts.legend(legend), *rows]


def draw(sample: Any, colors: Sequence[tuple[int, ...]], truth: bool = False) -> tuple[np.ndarray, Sequence[int], str]:
    """Draws the predictions or the ground truth of a data sample of mmdet or mmseg, with a colour per class.

    Returns the picture (H, W, 3), RGB, the classes in it, and how many boxes it shows, in words.
    """
    image = cv2.imread(sample.metainfo['img_path'])[..., ::-1]
    prefix = 'gt' if truth else 'pred'
    if hasattr(sample, f'{prefix}_sem_seg'):
        labels = getattr(sample, f'{prefix}_sem_seg').data[0].cpu().numpy()
        return draw_labels(image, labels, colors), np.unique(labels[labels < len(colors)]).tolist(), ''
    found = getattr(sample, f'{prefix}_instances').cpu()
    boxes = getattr(found.bboxes, 'tensor', found.bboxes).numpy()
    if truth:
        boxes = boxes / np.tile(sample.metainfo.get('scale_factor', (1.0, 1.0)), 2)
    else:
        kept = found.scores.numpy() >= SCORE
        found, boxes = found[kept], boxes[kept]
    labels = found.labels.numpy()
    count = f', {len(boxes)} boxes' + ('' if truth else f' of score {SCORE} or more')
    return draw_boxes(image, boxes, labels, colors), labels.tolist(), count


def palette(meta: dict[str, Any]) -> list[tuple[int, ...]]:
    """Returns a colour per class, RGB."""
    count = len(meta.get('classes') or COLORS)
    own = meta.get('palette')
    if isinstance(own, (list, tuple)) and len(own) >= count:
        return [tuple(map(int, color)) for color in own]
    return [COLORS[index % len(COLORS)] for index in range(count)]


def draw_boxes(
    image: np.ndarray, boxes: np.ndarray, labels: np.ndarray, colors: Sequence[tuple[int, ...]]
) -> np.ndarray:
    """Returns the picture, enlarged if it is small, with boxes (N, 4) in the colours of their classes."""
    canvas = _enlarged(image, cv2.INTER_LINEAR)
    scale = len(canvas) / len(image)
    for box, label in zip_equal((boxes * scale).round().astype(int).tolist(), labels):
        # A dark border, so that every colour is visible on every background.
        for color, width in (((15, 15, 15), 5), (colors[label % len(colors)], 3)):
            cv2.rectangle(canvas, box[:2], box[2:], color, width)
    return canvas


def draw_labels(image: np.ndarray, labels: np.ndarray, colors: Sequence[tuple[int, ...]]) -> np.ndarray:
    """Returns the picture with the classes (H, W) of its pixels over it; pixels without a class stay as they are."""
    known = labels < len(colors)
    mixed = 0.35 * image + 0.65 * np.array(colors)[np.where(known, labels, 0)]
    return _enlarged(np.where(known[..., None], mixed, image).astype(np.uint8), cv2.INTER_NEAREST)


def _enlarged(image: np.ndarray, interpolation: int) -> np.ndarray:
    scale = max(1.0, SIDE / max(image.shape[:2]))
    return cv2.resize(image, None, fx=scale, fy=scale, interpolation=interpolation)
