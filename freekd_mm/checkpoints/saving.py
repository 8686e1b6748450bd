"""Writes checkpoints whole or not at all, and says what is missing when the disk is full."""

from __future__ import annotations

import errno
import io
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from freekd_mm.files import write_atomically

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def save_atomically(content: Any, path: str | os.PathLike) -> Path:
    """``torch.save`` that leaves either the old file or the whole new one, also if the disk is full."""
    path, buffer = Path(path), io.BytesIO()
    # Not into the file: PyTorch's writer replaces an error of the disk by its own, which hides the reason.
    torch.save(content, buffer)
    try:
        return write_atomically(path, lambda part: part.write_bytes(buffer.getbuffer()))
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise OSError(error.errno, f'{path} cannot be written: {error.strerror}; the old file is intact') from error
        needed, free = (f'{size / 1e6:.1f} MB' for size in (buffer.tell(), shutil.disk_usage(path.parent).free))
        raise OSError(
            error.errno,
            f'{path} cannot be written: {error.strerror}. It needs {needed}, and {free} are free in '
            f'{path.parent}. The old file is intact: free some space, and continue with --resume',
        ) from error
