"""A progress bar with the time left: redrawn in a terminal, one line per tenth in a log."""

from __future__ import annotations

import sys
import time
from typing import TextIO

_WIDTH = 30


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
        self._before: int | None = None
        self._shown = 0

    def __call__(self, done: int, total: int) -> None:
        """Draws the bar if another part of the work is done: a tenth in a log, a hundredth in a terminal."""
        if self._before is None:
            # What was done before the bar was made (a resumed run) says nothing about the speed.
            self._before = done - 1
        is_log = not self.stream.isatty()
        part = (10 if is_log else 100) * done // max(total, 1)
        if part == self._shown:
            return
        self._shown = part
        elapsed = time.monotonic() - self._start
        left = elapsed / max(done - self._before, 1) * (total - done)
        said = f'{done}/{total}, {format_seconds(elapsed)}'
        if done < total:
            said += f' so far, {format_seconds(left)} left'
        if is_log:
            self.stream.write(f'{self.label}: {said}\n')
        else:
            bar = '#' * (_WIDTH * done // max(total, 1))
            # \033[K clears what is left of a longer line.
            self.stream.write(f'\r{self.label} [{bar:.<{_WIDTH}}] {said}\033[K' + ('\n' if done >= total else ''))
        self.stream.flush()
