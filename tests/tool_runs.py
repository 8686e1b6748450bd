"""Runs the tools as processes that cost no import: forks of this one, which has mmdet and mmseg already."""

from __future__ import annotations

import logging
import os
import runpy
import sys
import time
from pathlib import Path

import mmdet.models  # noqa: F401 - before the forks, which all need them
import mmseg.models  # noqa: F401
from leftovers import clear_leftovers
from mmengine.logging import MMLogger
from toy_runs import exit_code, in_child

ROOT = Path(__file__).resolve().parents[1]
TIME_LIMIT = 120


def start_tool(folder: Path, log: Path, words: list[str]) -> int:
    """Starts ``python tools/<words>`` in a folder, its output in a file; returns the process id."""

    def run() -> int:
        os.chdir(folder)
        logging.getLogger().handlers.clear()
        MMLogger._instance_dict.clear()
        clear_leftovers()
        tool = ROOT / 'tools' / words[0]
        sys.argv = [str(tool), *words[1:]]
        sys.path[0] = str(tool.parent)
        return _run(tool)

    log.unlink(missing_ok=True)
    return in_child(log, run)


def _run(tool: Path) -> int:
    """Returns the status that Python would end with."""
    try:
        runpy.run_path(str(tool), run_name='__main__')
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def run_tool(folder: Path, *words: object) -> tuple[int, str]:
    """Runs a tool; returns its status, -9 where it hangs, and what it printed."""
    log = folder / '.output'
    child = start_tool(folder, log, [str(word) for word in words])
    deadline = time.monotonic() + TIME_LIMIT
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return exit_code(status), log.read_text(errors='replace')
        if time.monotonic() > deadline:
            os.kill(child, 9)
        time.sleep(0.005)
