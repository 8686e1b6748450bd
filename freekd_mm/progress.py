"""A progress bar with the time left: redrawn in a terminal, one line per tenth in a log."""

from __future__ import annotations

import sys
import time
from typing import TextIO

_WIDTH = 30
_SECONDS_BETWEEN_DRAWS = 0.1


def format_seconds(seconds: float) -> str:
    """Returns e.g. '7s', '2m05s' or '1h02m'."""
    whole = round(seconds)
    if whole < 60:
        return f'{whole}s'
    if whole < 3600:
        return f'{whole // 60}m{whole % 60:02d}s'
    return f'{whole // 3600}h{whole % 3600 // 60:02d}m'


class ProgressBar:
    """Shows the progress of a loop; call it with (done, total) after every step.

    Args:
        label: What is being done.
        stream: Where to write; standard error by default.
    """

    def __init__(self, label: str, stream: TextIO | None = None) -> None:
        self.label = label
        self.stream = stream if stream is not None else sys.stderr
        self._start = time.monotonic()
        self._first_done: int | None = None
        self._drawn = float('-inf')
        self._tenth = 0

    def __call__(self, done: int, total: int) -> None:
        """Draws the bar if enough has happened since it was drawn last."""
        now = time.monotonic()
        if self._first_done is None:
            # What was done before the bar was made (a resumed run) says nothing about the speed.
            self._first_done = done - 1
        elapsed = now - self._start
        left = elapsed / max(done - self._first_done, 1) * (total - done)
        timing = (
            f'{format_seconds(elapsed)} so far, {format_seconds(left)} left'
            if done < total
            else format_seconds(elapsed)
        )
        if self.stream.isatty():
            if now - self._drawn < _SECONDS_BETWEEN_DRAWS and done < total:
                return
            self._drawn = now
            full = _WIDTH * done // max(total, 1)
            bar = '#' * full + '.' * (_WIDTH - full)
            # \033[K clears what is left of a longer line.
            self.stream.write(
                f'\r{self.label} [{bar}] {done}/{total}, {timing}\033[K' + ('\n' if done >= total else '')
            )
        else:
            tenth = 10 * done // max(total, 1)
            if tenth == self._tenth:
                return
            self._tenth = tenth
            self.stream.write(f'{self.label}: {done}/{total}, {timing}\n')
        self.stream.flush()
