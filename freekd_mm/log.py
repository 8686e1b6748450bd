"""Lines in the log of the present run, and on the terminal."""

from __future__ import annotations

import logging

from mmengine.logging import print_log


def say(text: str) -> None:
    """Writes a line."""
    print_log(text, 'current')


def warn(text: str) -> None:
    """Writes a line that stands out."""
    print_log(text, 'current', logging.WARNING)
