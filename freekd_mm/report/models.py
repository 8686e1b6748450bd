"""What the models of runs predict on the same pictures, and what was distilled."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from markupsafe import Markup
from mmengine.config import Config
from mmengine.utils import import_modules_from_strings

from freekd_mm.checkpoints.loading import load_checkpoint_file
from freekd_mm.checkpoints.sources import fetch, short_hash
from freekd_mm.pages.page import parts
from freekd_mm.report.runs import Run, inside
from freekd_mm.runtime.config import is_distilled, teachers_of
from freekd_mm.runtime.plain import build_plain, quiet, some_samples
from freekd_mm.runtime.teacher import build_teacher
from freekd_mm.visualize.features import INIT, compare
from freekd_mm.visualize.page import view_parts
from freekd_mm.visualize.predictions import predict, side_by_side

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
    columns, files, teachers, sections = {}, {}, {}, []
    with quiet():
        for _, cfg, _ in found:
            import_modules_from_strings(**(cfg.get('custom_imports') or {'imports': []}))
        data, meta = some_samples(found[0][1], count)
        for run, cfg, checkpoint in found:
            files[run.name] = (run.folder, checkpoint)
            columns[run.name] = predict(build_plain(cfg, load_checkpoint_file(checkpoint), str(checkpoint))[0], data)
            if is_distilled(cfg.model):
                teachers.update({teacher.get('checkpoint'): teacher for teacher in teachers_of(cfg.model)})
                views = [view_parts(*pair) for pair in compare(cfg, checkpoint, data[:DISTILLED], before=INIT)]
                sections.append((f'What was distilled: {run.name}', [parts.paragraph(BEFORE), *chain(*views)]))
        teachers.pop(None, None)  # random weights on purpose
        shown = {short_hash(checkpoint) for _, _, checkpoint in found}
        for source, teacher in teachers.items():
            model, file = build_teacher(teacher)[0], Path(fetch(str(source)))
            if hasattr(model, 'predict') and short_hash(file) not in shown:
                name = teacher.get('name', 'teacher')
                files[name], columns[name] = (file.parent, file), predict(model, data)
    sources = [f'{name}: {inside(folder, file)} ({short_hash(file)})' for name, (folder, file) in files.items()]
    explained = parts.remark(f'Pictures of the test data. {"; ".join(sources)}.')
    return [('Predictions', [explained, *side_by_side(columns, data, meta)]), *sections]
