"""Writes files so that a reader never sees half of one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def write_atomically(path: str | os.PathLike, write: Callable[[Path], None]) -> Path:
    """Lets ``write`` fill a temporary file beside ``path``, flushes it to the disk, and renames it.

    A crash or a full disk leaves the old file, or none, never half of the new one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f'.{path.name}.{os.getpid()}.part')
    try:
        write(part)
        with open(part, 'rb') as file:
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


def write_text(path: str | os.PathLike, text: str) -> Path:
    """Writes a text file atomically."""
    return write_atomically(path, lambda part: _write(part, text.encode('utf-8')))


def write_bytes(path: str | os.PathLike, content: bytes) -> Path:
    """Writes a binary file atomically."""
    return write_atomically(path, lambda part: _write(part, content))


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)
