"""One run per work directory: it can be written, and no other run writes there at the same time."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from mmengine.logging import print_log

from freekd_mm.files import lock

LOCK = '.lock'
#: Left by a writer that was killed; see :func:`freekd_mm.files.write_atomically`.
LEFTOVERS = '.*.part'


class WorkDirInUseError(RuntimeError):
    """Another run writes to the same work directory."""


def is_first_process(launcher: str = 'none') -> bool:
    """Whether this is the process of a run that writes, also before the processes have found each other."""
    # Without a launcher each process is its own run, whatever a scheduler has put into its environment.
    return launcher == 'none' or all(
        int(os.environ.get(name, 0)) == 0 for name in ('RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK')
    )


@contextmanager
def own_work_dir(path: str | os.PathLike, launcher: str = 'none') -> Iterator[Path]:
    """Holds a work directory for one run, by its first process; frees it when the run ends, no matter how.

    The lock belongs to the process, so it is gone when the process is killed.
    """
    path = Path(path)
    if not is_first_process(launcher):
        yield path
        return
    try:
        path.mkdir(parents=True, exist_ok=True)
        file = open(path / LOCK, 'a+', encoding='utf-8')  # noqa: SIM115 - open until the run ends
    except OSError as error:
        raise PermissionError(
            f'work_dir should be a folder that can be written, but got {str(path)!r}: {error.strerror}. '
            'Choose another with --work-dir.'
        ) from error
    with file:
        _lock(file, path)
        file.seek(0)
        file.truncate()
        file.write(f'process {os.getpid()} on {socket.gethostname()} since {time.strftime("%Y-%m-%d %H:%M:%S")}')
        file.flush()
        _remove_leftovers(path)
        try:
            yield path
        finally:
            file.truncate(0)


def _lock(file: TextIO, path: Path) -> None:
    try:
        lock(file)
    except BlockingIOError:
        file.seek(0)
        raise WorkDirInUseError(
            f'work_dir {str(path)!r} should belong to one run, but is in use by {file.read() or "another"}. Wait '
            'for it, stop it, or choose another with --work-dir.'
        ) from None
    except OSError as error:
        print_log(
            f'{path} cannot be locked ({error.strerror}): make sure that no other run writes there',
            'current',
            logging.WARNING,
        )


def _remove_leftovers(path: Path) -> None:
    """Removes incomplete files of a killed run; nobody else writes here now."""
    for part in path.glob(LEFTOVERS):
        part.unlink(missing_ok=True)
