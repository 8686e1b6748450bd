"""Writes checkpoints whole or not at all, and says what is missing when the disk is full."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch

from freekd_mm.files import write_atomically

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class _Sink:
    """Takes what ``torch.save`` writes, keeps the first error for later, and continues to count.

    PyTorch's writer replaces an error of the file by its own, which hides the reason.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.size = 0
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        self.size += size
        if self.error is None:
            try:
                self.file.write(data)
            except OSError as error:
                self.error = error
        return size

    def flush(self) -> None:
        pass


def save_atomically(content: Any, path: str | os.PathLike) -> Path:
    """``torch.save`` that leaves either the old file or the whole new one, also if the disk is full."""
    path = Path(path)
    size = 0

    def write(part: Path) -> None:
        nonlocal size
        with open(part, 'wb') as file:
            sink = _Sink(file)
            torch.save(content, cast(Any, sink))
            size = sink.size
            if sink.error is not None:
                raise sink.error

    try:
        return write_atomically(path, write)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise OSError(error.errno, f'{path} cannot be written: {error.strerror}; the old file is intact') from error
        free = shutil.disk_usage(path.parent).free
        raise OSError(
            error.errno,
            f'{path} cannot be written: {error.strerror}. It needs {_megabytes(size)}, and {_megabytes(free)} are free '
            f'in {path.parent}. The old file is intact: free some space, and continue with --resume',
        ) from error


def _megabytes(size: int) -> str:
    return f'{size / 1e6:.1f} MB'
