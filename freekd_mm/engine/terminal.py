"""What a failing run writes: one block on the terminal, everything in its log."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mmengine.logging import MMLogger
from mmengine.runner import Runner


def log_files() -> list[logging.FileHandler]:
    """Returns the log files that the present run writes."""
    return [handler for handler in MMLogger.get_current_instance().handlers if isinstance(handler, logging.FileHandler)]


def log_error(error: Exception) -> list[str]:
    """Writes an error with its traceback to the log files only; returns their names."""
    name, trace = MMLogger.get_current_instance().name, (type(error), error, error.__traceback__)
    record = logging.LogRecord(name, logging.ERROR, __file__, 0, 'the run failed', (), trace)
    for handler in log_files():
        handler.handle(record)
    return [handler.baseFilename for handler in log_files()]


@contextmanager
def quiet_building() -> Iterator[None]:
    """While a runner is built, its config, hundreds of lines, goes to the log file alone, and is not yet dumped.

    The dumped config is the record of what was trained: a resume that is refused leaves it as it is.
    """
    log_env, dump_config = Runner._log_env, Runner.dump_config

    def _log_env(self: Any, env_cfg: dict) -> None:
        terminal = [handler for handler in self.logger.handlers if not isinstance(handler, logging.FileHandler)]
        for handler in terminal:
            handler.addFilter(_is_no_config)
        log_env(self, env_cfg)
        for handler in terminal:
            handler.removeFilter(_is_no_config)

    vars_of_class: Any = Runner
    vars_of_class._log_env, vars_of_class.dump_config = _log_env, lambda self: None
    try:
        yield
    finally:
        vars_of_class._log_env, vars_of_class.dump_config = log_env, dump_config


def _is_no_config(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith('Config:\n')
