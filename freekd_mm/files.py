"""Writes files so that a reader never sees half of one, and locks them."""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

MARK = '# The lines above are as the tool wrote them: '


def write_atomically(path: str | os.PathLike, write: Callable[[Path], None]) -> Path:
    """Lets ``write`` fill a temporary file beside ``path``, flushes it to the disk, and renames it.

    A crash or a full disk leaves the old file, or none, never half of the new one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f'.{path.name}.{os.getpid()}.part')
    try:
        write(part)
        with open(part, 'rb+') as file:  # Windows flushes no file that is open for reading alone
            os.fsync(file.fileno())
        os.replace(part, path)
        _flush_folder(path.parent)
    finally:
        part.unlink(missing_ok=True)
    return path


def _flush_folder(folder: Path) -> None:
    """Makes a rename survive a loss of power, where the file system can."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows does not open folders
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)


def lock(file: IO) -> None:
    """Locks an open file for this process, until the file is closed or the process ends; never waits.

    Raises:
        BlockingIOError: Another process holds it.
        OSError: It cannot be locked: on some file systems, and on Windows.
    """
    if fcntl is None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
    try:
        # lockf, not flock: forked data loading processes would keep the latter.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise BlockingIOError(error.errno, 'another process holds the lock') from error
        raise


def write_text(path: str | os.PathLike, text: str) -> Path:
    """Writes a text file atomically."""
    return write_atomically(path, lambda part: _write(part, text.encode('utf-8')))


def is_unedited(path: Path) -> bool:
    """Whether a file is as :func:`write_kept` left it: nobody's work is lost when it is made again."""
    text, _, mark = path.read_text(encoding='utf-8', errors='replace').rpartition(MARK)
    return bool(text) and mark.strip() == _digest(text)


def check_output(path: Path, inputs: Iterable[Path], force: bool = False) -> None:
    """Raises before a file is lost.

    Args:
        path: The file that will be written.
        inputs: Files that it is made from.
        force: Replace a file that somebody made or edited; :func:`write_kept` keeps it.
    """
    if path.resolve() in {file.resolve() for file in inputs}:
        raise FileExistsError(f'the output should not be one of the inputs, but got {str(path)!r} for both')
    if path.exists() and not force and not is_unedited(path):
        raise FileExistsError(
            f'the output should be a new file, but {str(path)!r} exists and was made or edited by a person: choose '
            f'another name, or use --force, which keeps the old file as {_backup(path).name}'
        )


def write_kept(path: Path, text: str) -> Path:
    """Writes a Python file with a mark, so that it may be made again while nobody edits it; keeps what it replaces."""
    if path.exists() and not is_unedited(path):
        os.replace(path, _backup(path))
    return write_text(path, f'{text}{MARK}{_digest(text)}\n')


def _backup(path: Path) -> Path:
    """Returns the first free name."""
    names = (path.with_name(f'{path.name}.bak{number or ""}') for number in itertools.count())
    return next(name for name in names if not name.exists())


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode('utf-8')).hexdigest()[:12]


def write_bytes(path: str | os.PathLike, content: bytes) -> Path:
    """Writes a binary file atomically."""
    return write_atomically(path, lambda part: _write(part, content))


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)
