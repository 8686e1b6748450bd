"""Makes mmengine write its checkpoints atomically, and say what is missing when the disk is full."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO, cast

import torch

from freekd_mm.compat.on_import import when_imported
from freekd_mm.files import write_atomically

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class _Sink:
    """Takes what ``torch.save`` writes, keeps the first error for later, and counts on.

    PyTorch's writer answers an error of the file with one of its own that hides the reason.
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
    """``torch.save`` that leaves the old file, or the whole new one.

    Raises:
        OSError: The disk is full, or the folder cannot be written; the file that was there is intact.
    """
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
            raise OSError(
                error.errno, f'{path} cannot be written: {error.strerror}; what was there is intact'
            ) from error
        free = shutil.disk_usage(path.parent).free
        raise OSError(
            error.errno,
            f'{path} cannot be written: {error.strerror}. It takes {_megabytes(size)}, and {_megabytes(free)} are free '
            f'in {path.parent}. What was there is intact: make room, and go on with --resume',
        ) from error


def _megabytes(size: int) -> str:
    return f'{size / 1e6:.1f} MB'


def install_atomic_saver() -> None:
    """Makes ``mmengine.runner.save_checkpoint``, which all its hooks use, atomic for local files."""
    when_imported('mmengine.runner.checkpoint', _make_atomic)


def _make_atomic(module: ModuleType) -> None:
    from mmengine.fileio import LocalBackend, get_file_backend

    original = module.save_checkpoint
    if getattr(original, 'atomic', False):
        return

    def save_checkpoint(
        checkpoint: dict, filename: str, file_client_args: dict | None = None, backend_args: dict | None = None
    ) -> None:
        remote = '://' in str(filename) or file_client_args is not None
        if remote or not isinstance(get_file_backend(filename, backend_args=backend_args), LocalBackend):
            original(checkpoint, filename, file_client_args, backend_args)
        else:
            save_atomically(checkpoint, filename)

    save_checkpoint.atomic = True  # type: ignore[attr-defined]
    for name in ('mmengine.runner.checkpoint', 'mmengine.runner', 'mmengine.runner.runner'):
        if getattr(sys.modules.get(name), 'save_checkpoint', None) is original:
            vars(sys.modules[name])['save_checkpoint'] = save_checkpoint
