"""Shows the pictures of a distilled student: as PNG files, or as parts of an HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup
from mmengine.config import Config

from freekd_mm.checkpoints.sources import short_hash
from freekd_mm.checks import check_file
from freekd_mm.compat.versions import zip_equal
from freekd_mm.files import check_output, write_kept
from freekd_mm.log import quiet
from freekd_mm.pages.page import key, line_chart, parts, picture, write_page
from freekd_mm.pictures import png
from freekd_mm.prompts.prompt_file import use_prompt
from freekd_mm.stage1.selectivity import describe
from freekd_mm.visualize.draw import TEXTS, WEIGHT_AXES, overviews, panels
from freekd_mm.visualize.features import INIT, Seen, View, compare, read_images


def visualize(
    cfg: Config,
    checkpoint: str | Path,
    images: Sequence[str | Path],
    out: str | Path,
    before: str | Path | None = None,
    force: bool = False,
) -> list[Path]:
    """Writes a page (``out`` ends in ``.html``) or a folder of PNG files; returns what was written.

    The options are those of ``tools/visualize.py``.
    """
    for file in (checkpoint, *([before] if before and before != INIT else [])):
        check_file('a checkpoint', file)
    is_page = Path(out).suffix.lower() in ('.html', '.htm')
    if is_page:
        check_output(out, [checkpoint, *images], force)
    use_prompt(cfg)
    with quiet():
        views = compare(cfg, checkpoint, read_images(cfg, images), before)
    for seen in views[0][0].entries:
        if seen.masks:
            print(f"the weight of the prompt of '{seen.entry}':\n{describe(seen.prompt)}")
    if is_page:
        first = 'the student as its training starts' if before == INIT else before and _named(before)
        says = f'"Before" is {first}, "after" is {_named(checkpoint)}.' if before else _named(checkpoint)
        found = [parts.notes([says])]
        for file, (view, old) in zip_equal(images, views):
            found.append(parts.section(Path(file).name, view_parts(view, old)))
        return [write_page(out, f'What {Path(cfg.filename).name} distils', Path(checkpoint).name, found)]
    drawn = {
        Path(out) / f'{Path(file).stem}_{name}.png': overview
        for file, (view, first) in zip_equal(images, views)
        for name, overview in overviews(view, first)
    }
    if not drawn:
        raise ValueError('there is nothing to show: ' + '; '.join(f'{s.entry}: {s.note}' for s in views[0][0].entries))
    for path in drawn:
        check_output(path, images, force)
    return [write_kept(path, png(overview)) for path, overview in drawn.items()]


def _named(file: str | Path) -> str:
    return f'{"/".join(Path(file).parts[-2:])} ({short_hash(file)})'


def view_parts(view: View, before: View | None = None) -> list[Markup]:
    """Returns everything about one image, with what the pictures mean."""
    found = [parts.pictures([picture(view.image, 'the picture, as the models see it', photo=True)])]
    for index, seen in enumerate(view.entries):
        first = before.entries[index] if before else None
        found.append(parts.heading(seen.entry))
        if seen.note:
            found.append(parts.remark(f'Nothing to show: {seen.note}.'))
        for panel in panels(seen, view.image, first):
            found.append(parts.remark(TEXTS[panel.kind]))
            if panel.kind == 'masks':
                found.append(parts.code(describe(seen.prompt)))
            for level in panel.levels:
                figures = [picture(drawn, title, panel.kind == 'masks') for row in level for title, drawn in row]
                found.append(parts.pictures(figures, min(len(figures), 8), 128))
            if panel.kind == 'bands':
                found += _distances(seen, first)
            if panel.lines:
                legend = parts.legend([key(line.label, line.style) for line in panel.lines])
                found += [legend, parts.charts([line_chart('relation weights', panel.lines, *WEIGHT_AXES)])]
    return found


def _distances(seen: Seen, before: Seen | None) -> list[Markup]:
    """Returns what the loss does not see, and the mean distance of each band and level, before and after."""

    def cell(level: int, band: int) -> str:
        values = [found.bands[level].difference[band].mean() for found in (before, seen) if found]
        return ' \u2192 '.join(f'{value:.3g}' for value in values)

    levels = range(len(seen.bands))
    rows = [[name, *(cell(level, band) for level in levels)] for band, name in enumerate(seen.bands[0].names)]
    change = ', before \u2192 after' if before else ''
    text = f'Mean distance in each band{change}; 1 is the finest wavelet level.'
    header = ['', *(f'level {level}' for level in levels)]
    return [parts.remark(' '.join([*seen.remarks, text])), parts.table(header, rows, 't' + 'n' * len(levels))]
