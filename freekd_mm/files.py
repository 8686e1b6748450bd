"""Writes files so that a reader never sees half of one."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

#: What closes the comment with the mark, by format.
ENDS = (b'\n', b' -->\n', b'"\n}\n')
#: Follows what a tool wrote, as a comment of its format, before a digest of all that is above.
MARK = b'all above is as the tool wrote it: '


def write_atomically(path: str | os.PathLike, write: Callable[[Path], Any]) -> Path:
    """Lets ``write`` fill a temporary file beside ``path``, flushes it to the disk, and renames it.

    A crash or a full disk leaves the old file, or none, never half of the new one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f'.{path.name}.{uuid4().hex}.part')  # processes in two containers may have one number
    try:
        write(part)
        with open(part, 'rb+') as file:  # Windows flushes no file that is open only for reading
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # Windows does not open folders
        # The rename survives a loss of power.
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    return path


def write_text(path: str | os.PathLike, text: str) -> Path:
    """Writes a text file atomically."""
    return write_bytes(path, text.encode('utf-8'))


def write_bytes(path: str | os.PathLike, content: bytes) -> Path:
    """Writes a binary file atomically."""
    return write_atomically(path, lambda part: part.write_bytes(content))


@contextlib.contextmanager
def turn(folder: Path) -> Iterator[None]:
    """Waits until no other process of this machine has its turn in a folder, where the system can tell."""
    with contextlib.ExitStack() as end:
        if fcntl:
            opened = os.open(folder, os.O_RDONLY)
            end.callback(os.close, opened)
            with contextlib.suppress(OSError):
                fcntl.flock(opened, fcntl.LOCK_EX)
        yield


def is_unedited(path: Path) -> bool:
    """Whether a file is as :func:`write_kept` left it: then no work is lost when it is made again."""
    body, found, rest = path.read_bytes().rpartition(MARK) if path.is_file() else (b'', b'', b'')
    return bool(found) and rest in [_digest(body) + end for end in ENDS]


def check_output(
    path: str | os.PathLike, inputs: Iterable[str | os.PathLike], force: bool = False, folder: bool = False
) -> None:
    """Raises an error before the file or folder would replace one of the inputs, or what a person made or edited.

    With ``force`` the latter may be replaced; :func:`make_room` keeps it. A file never replaces a folder.
    """
    path = Path(path)
    if path.resolve() in {Path(file).resolve() for file in inputs}:
        raise FileExistsError(f'the output should not be one of the inputs, but got {str(path)!r} for both')
    if path.is_dir() and not folder:
        raise IsADirectoryError(f'the output should be a file, but {str(path)!r} is a folder: choose another name')
    if _is_somebodys(path) and not force:
        raise FileExistsError(
            f'the output should be new, but {str(path)!r} exists and was made or edited by a person: choose another '
            f'name, or use --force, which keeps the old one as {_backup(path).name}'
        )


def make_room(path: Path) -> None:
    """Renames a file or folder that a person made or edited, before another one replaces it."""
    if _is_somebodys(path):
        os.replace(path, _backup(path))


def write_kept(path: Path, content: str | bytes) -> Path:
    """Writes a file with a mark, so that it may be made again unless a person edits it; keeps what it replaces."""
    make_room(path)
    return write_bytes(path, _marked(path.suffix, content.encode('utf-8') if isinstance(content, str) else content))


def _is_somebodys(path: Path) -> bool:
    return any(path.iterdir()) if path.is_dir() else path.exists() and not is_unedited(path)


def _backup(path: Path) -> Path:
    """Returns the first free name."""
    names = (path.with_name(f'{path.name}.bak{number or ""}') for number in itertools.count())
    return next(name for name in names if not name.exists())


def _marked(suffix: str, content: bytes) -> bytes:
    """Puts the mark at the end of a file, where readers of its format take it for a comment or ignore it."""
    start, end = (b'<!-- ', b' -->\n') if suffix in ('.html', '.htm', '.md') else (b'# ', b'\n')
    if suffix == '.json':
        content, start, end = content.rstrip()[:-1].rstrip(), b',\n  "written_by": "freekd_mm, ', b'"\n}\n'
    elif content[:2] == b'PK':
        # A checkpoint is a zip archive, which ends with the length of its comment and the comment.
        length = len(start + MARK + _digest(b'') + end)
        content = content[:-2] + length.to_bytes(2, 'little')
    body = content + start
    return body + MARK + _digest(body) + end


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest()[:12].encode('ascii')


def here(path: Path) -> str:
    """Returns a path for the current folder: relative if it is below it."""
    # Not resolved: a virtual environment's Python is a link.
    path = Path(os.path.abspath(path))
    return str(path.relative_to(Path.cwd())) if Path.cwd() in path.parents else str(path)
