"""Writes the pictures of a distilled student, as PNG files or as one HTML page."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config

from freekd_mm.checks import did_you_mean
from freekd_mm.compat.versions import zip_equal
from freekd_mm.files import write_bytes, write_text
from freekd_mm.pictures import jpeg, png
from freekd_mm.prompts.prompt_file import use_prompt
from freekd_mm.report.page import Page, notes, picture, pictures
from freekd_mm.visualize.draw import overviews
from freekd_mm.visualize.features import View
from freekd_mm.visualize.loading import INIT, compare, quiet, read_images
from freekd_mm.visualize.view_parts import view_parts


def visualize(
    cfg: Config,
    checkpoint: str | Path,
    images: Sequence[str | Path],
    out: str | Path,
    before: str | Path | None = None,
    entries: Sequence[str] | None = None,
) -> list[Path]:
    """Writes a page (``out`` ends in ``.html``) or a folder of PNG files; returns what was written.

    Args:
        cfg: The distillation config.
        checkpoint: A checkpoint that the distillation wrote.
        images: Image files.
        out: The page or the folder.
        before: ``'init'`` or a checkpoint of the student before the distillation.
        entries: Names of the entries of ``distill`` to show; all by default.
    """
    for file in (checkpoint, *([before] if before and before != INIT else [])):
        if not Path(file).is_file():
            raise FileNotFoundError(f'a checkpoint should be an existing file, but got {str(file)!r}.{_near(file)}')
    use_prompt(cfg)
    with quiet():
        views = compare(cfg, checkpoint, read_images(cfg, images), before, entries)
    if Path(out).suffix.lower() in ('.html', '.htm'):
        return [_write_page(Path(out), cfg, checkpoint, images, views, before)]
    written = []
    for file, (view, first) in zip_equal(images, views):
        for name, drawn in overviews(view, first):
            written.append(write_bytes(Path(out) / f'{Path(file).stem}_{name}.png', png(drawn)))
    if not written:
        raise ValueError('there is nothing to show: ' + '; '.join(f'{s.entry}: {s.note}' for s in views[0][0].entries))
    return written


def _near(file: str | Path) -> str:
    folder = Path(file).parent
    return did_you_mean(Path(file).name, [item.name for item in folder.iterdir()]) if folder.is_dir() else ''


def _write_page(
    out: Path,
    cfg: Config,
    checkpoint: str | Path,
    images: Sequence[str | Path],
    views: Sequence[tuple[View, View | None]],
    before: str | Path | None,
) -> Path:
    name = Path(cfg.filename).name if cfg.filename else 'a config'
    page = Page(
        f'What {name} distils', f'{Path(checkpoint).name}, {time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())}'
    )
    if before:
        what = 'the student as its training starts' if before == INIT else Path(before).name
        page.add(notes([f'"Before" is {what}, "after" is {Path(checkpoint).name}.']))
    for file, (view, first) in zip_equal(images, views):
        page.section(
            Path(file).name, pictures(picture(jpeg(view.image), 'as the models see it')), view_parts(view, first)
        )
    return write_text(out, page.html())
