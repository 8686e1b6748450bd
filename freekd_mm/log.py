"""Lines in the log of the present run, and on the terminal."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

from mmengine.logging import MMLogger, print_log


def say(text: str) -> None:
    """Writes a line."""
    print_log(text, 'current')


def warn(text: str) -> None:
    """Writes a line that stands out."""
    print_log(text, 'current', logging.WARNING)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hides what building models and reading annotations prints; logged warnings stay."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter('ignore')
            yield
    finally:
        logger.setLevel(level)
