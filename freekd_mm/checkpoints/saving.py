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


def save_atomically(content: Any, path: str | os.PathLike) -> Path:
    """``torch.save`` that leaves either the old file or the whole new one, also if the disk is full."""
    path, buffer = Path(path), io.BytesIO()
    # Not into the file: PyTorch's writer replaces an error of the disk by its own, which hides the reason.
    torch.save(content, buffer)
    try:
        return write_atomically(path, lambda part: part.write_bytes(buffer.getbuffer()))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise OSError(error.errno, f'{path} cannot be written: {error.strerror}. The old file is intact') from error
        free = shutil.disk_usage(path.parent).free if path.parent.is_dir() else 0
        raise OSError(
            error.errno,
            f'{path} cannot be written: {error.strerror}. It needs {buffer.tell() / 1e6:.1f} MB, and '
            f'{free / 1e6:.1f} MB are free there. The old file is intact: free some space, and continue with --resume',
        ) from error
