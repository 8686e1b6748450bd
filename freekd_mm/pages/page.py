"""One HTML page with everything in it: no script, no request, readable in light and in dark mode."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from freekd_mm.files import write_kept
from freekd_mm.pictures import jpeg, png
from freekd_mm.version import __version__

#: The colours of lines, ``--c0`` to ``--c7`` of the page, in light and in dark mode.
LIGHT = ('#2a6fb0', '#c8611f', '#23856a', '#8453b3', '#a67c00', '#bd3f74', '#4d6478', '#7a5636')
DARK = ('#6cabee', '#f0955c', '#5cc7a4', '#bd98ec', '#dcb84e', '#f086b2', '#a3b7ca', '#c9a079')

_environment = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    undefined=StrictUndefined,
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
)
_environment.globals.update(light=LIGHT, dark=DARK, version=__version__)
#: The macros of ``page.html``: they escape text and return markup.
parts: Any = _environment.get_template('page.html').module


def sections(named: Iterable[tuple[str, Sequence[Markup]]]) -> list[Markup]:
    """Returns a section for each heading that has something below it."""
    return [parts.section(heading, inner) for heading, inner in named if any(inner)]


def picture(image: np.ndarray, caption: str, photo: bool = False) -> Markup:
    """Returns an RGB picture (H, W, 3) within the page, as JPEG if it is a photo."""
    kind, file = ('jpeg', jpeg(image)) if photo else ('png', png(image))
    return parts.picture(caption, f'data:image/{kind};base64,{base64.b64encode(file).decode("ascii")}')


def write_page(out: str | Path, title: str, subtitle: str, found: Sequence[Markup]) -> Path:
    """Writes the page and returns its path."""
    now = time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())
    return write_kept(Path(out), parts.page(title, f'{subtitle}, written {now}', found).lstrip())
