"""The progress of a run, for the process that started it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from mmengine.hooks import Hook

from freekd_mm.files import write_text
from freekd_mm.registry import HOOKS

STATUS = 'status.json'
SECONDS_BETWEEN_WRITES = 2.0


@HOOKS.register_module()
class BenchmarkStatusHook(Hook):
    """Keeps ``status.json``: how far the run is, how fast, and its metrics so far.

    Args:
        file: The file; a resumed run continues its metrics and its time.
        metric: The metric to keep.
    """

    priority = 'LOWEST'

    def __init__(self, file: str, metric: str) -> None:
        self.file, self.metric = Path(file), metric
        before = read_json(self.file) or {}
        self.history: list[list[float]] = before.get('history', [])
        self.before: float = before.get('seconds', 0.0)
        self.start = self.written = time.monotonic()
        self.first: int | None = None

    def before_train(self, runner: Any) -> None:
        """Starts the clock."""
        self.start = time.monotonic()
        self.first = runner.iter

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Writes the file every few seconds."""
        if time.monotonic() - self.written > SECONDS_BETWEEN_WRITES:
            self._write(runner)

    def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        """Keeps the metric, and the share of the training after which it was measured."""
        if metrics and self.metric in metrics:
            self.history.append([runner.iter / runner.max_iters, metrics[self.metric]])
        self._write(runner)

    def after_train(self, runner: Any) -> None:
        """Writes the end of the training."""
        self._write(runner)

    def _write(self, runner: Any) -> None:
        self.written = time.monotonic()
        seconds = self.written - self.start
        done = runner.iter - (self.first or 0)
        content = {
            'iter': runner.iter,
            'max_iters': runner.max_iters,
            'epoch': runner.epoch,
            'seconds': self.before + seconds,
            'eta': seconds / done * (runner.max_iters - runner.iter) if done > 0 else None,
            'history': self.history,
        }
        write_text(self.file, json.dumps(content))


def read_json(file: Path) -> dict[str, Any] | None:
    """Returns the content of a JSON file, None if there is no such file."""
    return json.loads(file.read_text(encoding='utf-8')) if file.is_file() else None
