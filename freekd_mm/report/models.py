"""What the models of runs predict on the same pictures, and what was distilled."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from mmengine.config import Config
from mmengine.utils import import_modules_from_strings

from freekd_mm.checkpoints.sources import fetch, short_hash
from freekd_mm.pages.page import parts, picture
from freekd_mm.report.files import inside
from freekd_mm.report.runs import Run
from freekd_mm.runtime.config import is_distilled, teachers_of
from freekd_mm.runtime.teacher import build_teacher
from freekd_mm.visualize.loading import INIT, compare, quiet
from freekd_mm.visualize.page import view_parts
from freekd_mm.visualize.predictions import build_student, predict, side_by_side, some_samples

#: Pictures for which bands, masks and weights are shown.
DISTILLED = 2
BEFORE = (
    'The same picture goes through teacher and student. "Before" is the student as its training starts, "after" is the '
    'distilled student; both are seen through their projections to the channels of the teacher.'
)


def shown_models(runs: Sequence[Run], count: int) -> list[tuple[str, list[Markup]]]:
    """Returns the sections with the predictions of all runs, and with what was distilled.

    This builds the models of the runs' configs, so use it only for your own runs. The pictures are evenly spread over
    the test data of the first run.
    """
    found = [(run, Config(run.config), run.checkpoint) for run in runs if run.config.get('model') and run.checkpoint]
    if not found:
        return [('Predictions', [parts.remark('No run has both a config and a checkpoint in its folder.')])]
    sources, columns, sections, teachers = [], {}, [], {}
    with quiet():
        for _, cfg, _ in found:
            import_modules_from_strings(**(cfg.get('custom_imports') or {'imports': []}))
        data, meta = some_samples(found[0][1], count)
        for run, cfg, checkpoint in found:
            sources.append(f'{run.name}: {inside(run.folder, checkpoint)} ({short_hash(checkpoint)})')
            columns[run.name] = predict(build_student(cfg, checkpoint), data)
            if is_distilled(cfg.model):
                teachers.update({teacher.get('checkpoint'): teacher for teacher in teachers_of(cfg.model)})
                sections.append((f'What was distilled: {run.name}', distilled(cfg, checkpoint, data[:DISTILLED])))
        shown = {short_hash(checkpoint) for _, _, checkpoint in found}
        teachers.pop(None, None)  # random weights on purpose
        for source, teacher in ((str(key), value) for key, value in teachers.items()):
            model, _ = build_teacher(teacher)
            file = Path(fetch(source))
            if hasattr(model, 'predict') and short_hash(file) not in shown:
                sources.append(f'teacher: {inside(file.parent, file)} ({short_hash(file)})')
                columns[teacher.get('name', 'teacher')] = predict(model, data)
    explained = parts.remark('Pictures of the test data. ' + '; '.join(sources) + '.')
    return [('Predictions', [explained, *side_by_side(columns, data, meta)]), *sections]


def distilled(cfg: Config, checkpoint: str | Path, data: Sequence[Any]) -> list[Markup]:
    """Returns bands, masks and weights, as the training starts and at its end."""
    found = [parts.paragraph(BEFORE)]
    for view, before in compare(cfg, checkpoint, data, before=INIT):
        found += [parts.pictures([picture(view.image, 'the picture', photo=True)]), *view_parts(view, before)]
    return found
