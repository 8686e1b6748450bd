"""One run per work directory: it can be written, no other run writes there, and an earlier one loses nothing."""

from __future__ import annotations

import errno
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from mmengine.config import Config

from freekd_mm.engine.checkpoint_hook import POINTER, checkpoint_folders, checkpoints_of
from freekd_mm.files import fcntl
from freekd_mm.log import warn
from freekd_mm.prompts.prompt_file import PROMPT_FILE

LOCK = '.lock'
#: Left by a writer that was killed; see :func:`freekd_mm.files.write_atomically`.
LEFTOVERS = '.*.part'
#: Where launchers put the number of a process, but for torchrun.
RANKS = {'slurm': 'SLURM_PROCID', 'mpi': 'OMPI_COMM_WORLD_RANK'}


def is_first_process(launcher: str = 'none') -> bool:
    """Whether this is the process of a run that writes, also before the processes have found each other."""
    # Without a launcher each process is its own run, whatever a scheduler has put into its environment.
    return launcher == 'none' or int(os.environ.get(RANKS.get(launcher, 'RANK'), 0)) == 0


@contextmanager
def own_work_dir(path: str | os.PathLike, launcher: str = 'none') -> Iterator[Path]:
    """Holds a work directory for one run, by its first process; frees it when the run ends, no matter how."""
    # The lock belongs to the process, so it is gone when the process is killed.
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
        for part in path.glob(LEFTOVERS):
            part.unlink(missing_ok=True)
        try:
            yield path
        finally:
            file.truncate(0)


def _lock(file: TextIO, path: Path) -> None:
    try:
        if fcntl is None:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
        # lockf, not flock: forked data loading processes would keep that one.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            file.seek(0)
            raise BlockingIOError(
                f'work_dir {str(path)!r} should belong to one run, but is in use by {file.read() or "another"}. Wait '
                'for it, stop it, or choose another with --work-dir.'
            ) from None
        warn(f'{path} cannot be locked ({error.strerror}): make sure that no other run writes there')


def set_aside(cfg: Config, own_log: str = '', resumed: str | None = None) -> None:
    """Moves the files of an earlier training to ``earlier-<time>/``; an error if the new one starts from them.

    ``own_log`` is the name of the new training's folder of logs. One that is resumed from here goes on.
    """
    folder, places = Path(cfg.work_dir), checkpoint_folders(cfg)
    found = [*checkpoints_of(cfg), *(file for place in places for file in place.glob('best_*.pth'))]
    if not found or (resumed and Path(resumed).parent.resolve() in [place.resolve() for place in places]):
        return
    found += [file for file in (folder / POINTER, folder / PROMPT_FILE) if file.is_file()]
    named = re.findall(r"""["']([^"']+\.pth)["']""", str(cfg._cfg_dict))
    used = {Path(text).expanduser().resolve() for text in named}
    inputs = [file for file in found if file.resolve() in used]
    if inputs:
        raise FileExistsError(
            f'a training should not start from a file that it may write over, but {inputs[0]} is named in the config: '
            'choose another folder with --work-dir, or continue with --resume'
        )
    aside = folder / f'earlier-{time.strftime("%Y%m%d_%H%M%S")}'
    aside.mkdir()
    logs = [log.parent for log in folder.glob('*/vis_data') if log.parent.name != own_log]
    for path in (*found, *logs):
        shutil.move(str(path), str(aside / path.name))
    record = folder / Path(cfg.filename or '').name
    if record.is_file():
        shutil.copy2(str(record), str(aside))
    warn(f'the {len(found)} files of an earlier training are now in {aside}')


def keep_own_config(cfg: Config) -> None:
    """Lets the runner write its config under another name if the user's own file is in the work directory."""
    file = Path(cfg.filename or '')
    if cfg.filename and (Path(cfg.work_dir) / file.name).resolve() == file.resolve():
        object.__setattr__(cfg, '_filename', str(file.with_name(f'{file.stem}_run{file.suffix}')))
