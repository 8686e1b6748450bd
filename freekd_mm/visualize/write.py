"""Writes the pictures of a distilled student, as PNG files or as one HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config
from mmengine.logging import print_log

from freekd_mm.checkpoints.sources import short_hash
from freekd_mm.checks import did_you_mean
from freekd_mm.compat.versions import zip_equal
from freekd_mm.files import check_output, write_kept
from freekd_mm.pages.page import parts, write_page
from freekd_mm.pictures import png
from freekd_mm.prompts.prompt_file import use_prompt
from freekd_mm.runtime.plain import quiet
from freekd_mm.stage1.selectivity import describe
from freekd_mm.visualize.draw import overviews
from freekd_mm.visualize.loading import INIT, compare, read_images
from freekd_mm.visualize.page import view_parts


def visualize(
    cfg: Config,
    checkpoint: str | Path,
    images: Sequence[str | Path],
    out: str | Path,
    before: str | Path | None = None,
    force: bool = False,
) -> list[Path]:
    """Writes a page (``out`` ends in ``.html``) or a folder of PNG files; returns what was written.

    Args:
        cfg: The distillation config.
        checkpoint: A checkpoint that the distillation wrote.
        images: Image files.
        out: The page or the folder.
        before: ``'init'`` or a checkpoint of the student before the distillation.
        force: Replace files that a person made or edited, and keep them as ``.bak``.
    """
    for file in (checkpoint, *([before] if before and before != INIT else [])):
        if not Path(file).is_file():
            near = [item.name for item in Path(file).parent.iterdir()] if Path(file).parent.is_dir() else []
            raise FileNotFoundError(
                f'a checkpoint should be an existing file, but got {str(file)!r}.{did_you_mean(Path(file).name, near)}'
            )
    is_page = Path(out).suffix.lower() in ('.html', '.htm')
    if is_page:
        check_output(out, [checkpoint, *images], force)
    use_prompt(cfg)
    with quiet():
        views = compare(cfg, checkpoint, read_images(cfg, images), before)
    for seen in views[0][0].entries:
        if seen.masks:
            print_log(f"the weight of the prompt of '{seen.entry}':\n{describe(seen.prompt)}")
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
