"""What the models of runs predict on the same pictures, and what was distilled."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from markupsafe import Markup
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import VISUALIZERS
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
from freekd_mm.visualize.draw import view_parts
from freekd_mm.visualize.features import compare

#: Boxes with a lower score are not drawn.
SCORE = 0.3
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
                for teacher in named_teachers(cfg.model.teacher).values():
                    teachers[teacher.get('checkpoint')] = teacher
                views = [view_parts(view) for view in compare(cfg, checkpoint, data[:DISTILLED], before=True)]
                sections.append((f'What was distilled: {run.name}', [parts.remark(BEFORE), *chain(*views)]))
        teachers.pop(None, None)  # random weights on purpose, or a library's own
        shown = {short_hash(checkpoint) for _, _, checkpoint in found}
        for source, teacher in teachers.items():
            model, file = build_teacher(teacher)[0], Path(fetch(str(source)))
            if hasattr(model, 'predict') and short_hash(file) not in shown:
                name = teacher.get('name', 'teacher')
                name = f'{name} {short_hash(file)}' if name in columns else name
                files[name], columns[name] = (file.parent, file), predict(model, data)
        rows = side_by_side(columns, meta)
    sources = [f'{name}: {inside(folder, file)} ({short_hash(file)})' for name, (folder, file) in files.items()]
    explained = f'Pictures of the test data, with boxes of score {SCORE} or more. {"; ".join(sources)}.'
    return [('Predictions', [parts.remark(explained), *rows]), *sections]


def predict(model: nn.Module, data: Sequence[Any]) -> list[Any]:
    """Returns the data samples with the predictions of a model."""
    scope = type(model).__module__.split('.')[0]
    with default_scope(scope), torch.no_grad():
        return [model.eval().test_step(pseudo_collate([copy.deepcopy(item)]))[0] for item in data]  # type: ignore[operator]


def side_by_side(columns: dict[str, list[Any]], meta: dict[str, Any]) -> list[Markup]:
    """Returns a row of pictures per image: the ground truth, then what each model predicts, by its name."""
    rows = []
    for samples in zip(*columns.values()):
        drawn = {'ground truth': draw(samples[0], meta, truth=True)}
        drawn.update({name: draw(sample, meta) for name, sample in zip_equal(columns, samples)})
        rows.append(parts.pictures([picture(shown, name) for name, shown in drawn.items()], len(drawn)))
    return rows


def draw(sample: Any, meta: dict[str, Any], truth: bool = False) -> np.ndarray:
    """Returns the picture of a data sample, RGB, as MMDetection or MMSegmentation draws it."""
    import mmcv

    is_map = type(sample).__module__.startswith('mmseg')
    visualizer: Any = VISUALIZERS.get('mmseg.SegLocalVisualizer' if is_map else 'mmdet.DetLocalVisualizer')()
    visualizer.dataset_meta = meta
    options = {'draw_gt': truth, 'draw_pred': not truth, **({} if is_map else {'pred_score_thr': SCORE})}
    image = mmcv.imread(sample.metainfo['img_path'], channel_order='rgb')
    visualizer.add_datasample('', image, sample.cpu(), **options)
    return visualizer.get_image()
