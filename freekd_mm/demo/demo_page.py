"""The demo's report: its table, what the models find, what was distilled, and the curves, in one HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config

from freekd_mm.compat.versions import zip_equal
from freekd_mm.demo.tasks import Task
from freekd_mm.files import write_text
from freekd_mm.pictures import jpeg
from freekd_mm.report.build import add_sections, remarks_on, subtitle
from freekd_mm.report.page import Page, code, color_legend, notes, paragraph, picture, pictures, table
from freekd_mm.report.runs import NoRunError, Run, read_run
from freekd_mm.runtime.config import is_distilled
from freekd_mm.visualize.loading import INIT, compare, quiet
from freekd_mm.visualize.predictions import SCORE, draw, palette, predict, some_samples
from freekd_mm.visualize.view_parts import view_parts

#: Pictures with the predictions of all models, and with what was distilled.
PREDICTED, DISTILLED = 4, 2


@dataclass(frozen=True)
class Model:
    """A model of the demo.

    Attributes:
        label: What the table calls it.
        config: Its config file.
        work_dir: Its work directory.
        checkpoint: Its last checkpoint.
    """

    label: str
    config: Path
    work_dir: Path
    checkpoint: Path


def write_demo_report(
    out: Path, task: Task, models: Sequence[Model], header: Sequence[str], rows: Sequence[Sequence[str]]
) -> Path:
    """Writes the report of a finished demo; returns its path.

    Args:
        out: The HTML file.
        task: The demo's task.
        models: Teacher, student alone, distilled student.
        header: Columns of the demo's table.
        rows: The demo's table.
    """
    runs = _runs(models)
    page = Page(f'freekd_mm demo: {models[-1].label}', subtitle(runs))
    honest = (
        'A generated toy data set, one seed, minutes of training: it shows the way and that everything works. It is no '
        'benchmark, and a difference of a few points between two of its models may be chance.'
    )
    page.section('Results', notes([honest, *remarks_on(runs)]), table(header, rows, 't' + 'n' * (len(header) - 1)))
    page.section(
        'The same on real data',
        paragraph('With the data set of this config in place (see docs/getting-started.md):'),
        code(task.on_real_data),
    )
    with quiet():
        data, meta = some_samples(Config.fromfile(models[0].config), PREDICTED)
        page.section('What the models find', *_predictions(models, data, meta))
        page.section('What was distilled', *_distilled(models[-1], data[:DISTILLED]))
    add_sections(page, runs)
    return write_text(out, page.html())


def _runs(models: Sequence[Model]) -> list[Run]:
    runs = []
    for model in models:
        try:
            runs.append(read_run(model.work_dir, model.label))
        except NoRunError as error:
            runs.append(Run(model.label, notes=[str(error)]))
    return runs


def _predictions(models: Sequence[Model], data: Sequence[Any], meta: dict[str, Any]) -> list[str]:
    """Returns a row of pictures an image: the truth, the students, the teacher."""
    ordered = [*models[1:], models[0]]
    predicted = [predict(Config.fromfile(model.config), model.checkpoint, data) for model in ordered]
    classes = meta.get('classes') or ()
    parts = [color_legend(list(zip(classes, palette(meta))))]
    boxes = False
    for index, item in enumerate(data):
        shown = [('ground truth', *draw(item['data_samples'], meta, truth=True))]
        shown += [(m.label, *draw(of[index], meta)) for m, of in zip_equal(ordered, predicted)]
        boxes = boxes or any(count for _, _, count in shown)
        figures = [picture(jpeg(image), ', '.join(filter(None, (label, count)))) for label, image, count in shown]
        parts.append(pictures(*figures))
    if boxes:
        parts.insert(0, paragraph(f'Boxes with a score of at least {SCORE}.', soft=True))
    return [paragraph('Pictures of the validation data, which no model has trained on.'), *parts]


def _distilled(model: Model, data: Sequence[Any]) -> list[str]:
    """Returns bands, masks and weights, as the training starts and at its end."""
    cfg = Config.fromfile(model.config)
    if not is_distilled(cfg.model):
        return []
    parts = [
        paragraph(
            'The same picture goes through teacher and student. "Before" is the student as its training starts, '
            '"after" is the distilled student; both are seen through their projections to the channels of the teacher.'
        )
    ]
    for view, before in compare(cfg, model.checkpoint, data, before=INIT):
        parts += [pictures(picture(jpeg(view.image), 'the picture')), view_parts(view, before)]
    return parts
