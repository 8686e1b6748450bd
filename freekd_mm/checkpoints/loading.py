"""Loads checkpoints as data: a file from elsewhere never runs code.

PyTorch >= 2.6 refuses everything except tensors by default, also the harmless mmengine and numpy objects in
the meta of OpenMMLab's files, so that mmengine 0.10.7 cannot resume its own checkpoints; the forks' loader
falls back to plain unpickling. Here exactly the classes that such files hold are allowed by
name, and nothing ever falls back to unpickling.
"""

from __future__ import annotations

import _codecs
import os
import pickle
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

from freekd_mm.checkpoints.sources import TRUSTED
from freekd_mm.checks import check_file
from freekd_mm.compat.versions import load_as_data

try:  # NumPy 2 moved the module; pickles hold either name.
    from numpy._core import multiarray
except ImportError:
    from numpy.core import multiarray  # type: ignore[no-redef]


class UntrustedCheckpointError(RuntimeError):
    """A checkpoint holds something other than data."""


def _allowed() -> dict[str, Any]:
    """Returns the names in the meta of official files and of mmengine's training checkpoints."""
    classes: list[Any] = [OrderedDict, np.ndarray, np.dtype, np.bool_, _codecs.encode]
    # NumPy's dtype objects are pickled by their class.
    classes += [type(np.dtype(code)) for code in '?bBhHiIlLqQefdU']
    allowed = {f'{item.__module__}.{item.__name__}': item for item in classes}
    for function in (multiarray._reconstruct, multiarray.scalar):  # type: ignore[attr-defined]
        for module in ('numpy.core.multiarray', 'numpy._core.multiarray'):
            allowed[f'{module}.{function.__name__}'] = function
    allowed['mmengine.logging.history_buffer.HistoryBuffer'] = HistoryBuffer

    def statistics_method(owner: Any, name: str) -> Any:
        """The one use of ``getattr`` in such files: a history buffer names its statistics by method."""
        if owner is not HistoryBuffer or name not in HistoryBuffer._statistics_methods:
            raise pickle.UnpicklingError(f'Unsupported global: GLOBAL getattr({owner!r}, {name!r})')
        return HistoryBuffer._statistics_methods[name]

    HistoryBuffer()  # fills its table of statistics
    allowed['builtins.getattr'] = statistics_method
    return allowed


def load_checkpoint_file(path: str | os.PathLike, map_location: Any = 'cpu') -> Any:
    """Loads a local checkpoint without running code from it; an error if it holds more than tensors and plain data.

    Only files that were named to :func:`trust` are unpickled plainly, which runs any code in them.
    """
    path = Path(path).expanduser()
    check_file('checkpoint', path)
    if path.suffix == '.safetensors':
        return _load_safetensors(path, str(map_location))
    if path.resolve() in TRUSTED:
        return torch.load(path, map_location=map_location, weights_only=False)
    try:
        return load_as_data(path, map_location, _allowed())
    except pickle.UnpicklingError as error:
        found = re.search(r'(?:GLOBAL|Unsupported (?:class|global):?(?: GLOBAL)?)\s+([\w.]+)', str(error))
        what = f'it names {found.group(1)!r}' if found else str(error).splitlines()[0]
        raise UntrustedCheckpointError(
            f'{path} should hold tensors and plain data only, but {what}. Nothing of it was run. If you made this '
            f'file yourself and trust it, add --trust-checkpoint {path} to the command, or in Python call '
            'freekd_mm.checkpoints.sources.trust(path) first.'
        ) from error
    except (RuntimeError, EOFError, LookupError, ValueError, TypeError, AttributeError) as error:
        raise RuntimeError(f'{path} should be a PyTorch checkpoint, but cannot be read (cut off?): {error}') from error


def _load_safetensors(path: Path, device: str) -> dict[str, Any]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise ImportError(f'{path} needs the package safetensors: pip install safetensors') from error
    try:
        return load_file(path, device)
    except SafetensorError as error:
        raise RuntimeError(f'{path} should be a file of safetensors, but cannot be read (cut off?): {error}') from error
