"""What a run changes in its process: what it writes on the terminal and in its log, and what it leaves for the next."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mmengine.logging import MMLogger
from mmengine.runner import Runner


def log_error(error: Exception) -> list[str]:
    """Writes an error with its traceback to the log files of the present run only; returns their names."""
    logger = MMLogger.get_current_instance()
    files = [handler for handler in logger.handlers if isinstance(handler, logging.FileHandler)]
    trace = (type(error), error, error.__traceback__)
    for handler in files:
        handler.handle(logging.LogRecord(logger.name, logging.ERROR, __file__, 0, 'the run failed', (), trace))
    return [handler.baseFilename for handler in files]


@contextmanager
def quiet_building() -> Iterator[None]:
    """Keeps what is logged and warned while a runner is built and checked from the terminal; shows it if that worked.

    So an error stands alone: the log file has all. The config, hundreds of lines, goes to the log file in any case. It
    is not yet dumped: that is the record of what was trained, and a resume that is refused leaves it as it is.
    """
    runner: Any = Runner
    log_env, dump_config = runner._log_env, runner.dump_config
    held: dict[logging.Handler, list[logging.LogRecord]] = {}

    def hold(self: Any, env_cfg: dict) -> None:
        for handler in self.logger.handlers:
            if not isinstance(handler, logging.FileHandler):
                vars(handler)['emit'] = held.setdefault(handler, []).append
        log_env(self, env_cfg)

    runner._log_env, runner.dump_config = hold, lambda self: None
    try:
        with warnings.catch_warnings(record=True) as warned:
            yield
    finally:
        runner._log_env, runner.dump_config = log_env, dump_config
        for console in held:
            del vars(console)['emit']
    for item in warned or ():
        warnings.showwarning(item.message, item.category, item.filename, item.lineno)
    for console, records in held.items():
        for record in records:
            if not str(record.msg).startswith('Config:\n'):
                console.emit(record)  # not `handle`: mmengine would take a warning for a repeated one


def clean_up(runner: Any) -> None:
    """Forgets the visualizer of a run that has ended, and ends its data loading processes."""
    # mmengine finds visualizers by name, and nearly all configs call theirs the same: stage 2 would log into the folder
    # of stage 1, and a second evaluation into that of the first, which may be gone.
    visualizer: Any = runner.visualizer
    for kind in type(visualizer).__mro__:
        instances: dict[str, Any] = getattr(kind, '_instance_dict', {})
        for name in [name for name, instance in instances.items() if instance is visualizer]:
            del instances[name]
    for loop in (runner._train_loop, runner._val_loop, runner._test_loop):
        # An iterator of a loop by iterations ends its workers when nothing refers to it.
        getattr(loop, '__dict__', {}).pop('dataloader_iterator', None)
        iterator = getattr(getattr(loop, 'dataloader', None), '_iterator', None)
        if iterator is not None:  # workers that live on between epochs: the garbage collector takes 5 s for each
            iterator._shutdown_workers()
