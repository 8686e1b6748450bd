"""Frequency-domain knowledge distillation for MMDetection and MMSegmentation.

Every Python 3 can read this file: an environment that is too old gets one line.
"""

import sys
import typing

from freekd_mm.version import __version__


def _too_old() -> 'str | None':
    """Returns what is too old here and what to do about it, or None."""
    needs = 'freekd_mm {} needs {} or newer, but this is {}: {}'
    if sys.version_info < (3, 8):
        here = 'Python {}.{} ({})'.format(sys.version_info[0], sys.version_info[1], sys.executable)
        return needs.format(__version__, 'Python 3.8', here, 'use another Python, for example 3.11')
    from freekd_mm.compat.versions import OLDEST_TORCH, installed_torch

    torch = installed_torch()
    if torch is None or torch >= OLDEST_TORCH:
        return None
    command = sys.executable + ' -m pip install torch==2.1.2, then an mmcv that fits it (docs/install.md)'
    return needs.format(__version__, 'PyTorch {}.{}'.format(*OLDEST_TORCH), 'PyTorch {}.{}'.format(*torch), command)


def _refuse(line: str) -> None:
    """Raises ImportError with one line; only that is printed if nobody catches it."""
    refusal, show = ImportError(line), sys.excepthook

    def show_line(kind: type, error: BaseException, trace: 'typing.Any') -> None:
        if error is refusal:
            sys.stderr.write(line + '\n')
        else:
            show(kind, error, trace)

    sys.excepthook = show_line
    raise refusal


_line = _too_old()
if _line:
    _refuse(_line)

__all__ = ['ImageFolder', '__version__', 'distill', 'export', 'pretrain']


def __getattr__(name: str) -> 'typing.Any':
    """Loads the Python API when it is used: importing the package loads neither torch nor the MM packages."""
    if name not in __all__:
        raise AttributeError('module freekd_mm has no attribute {!r}'.format(name))
    if name == 'ImageFolder':
        from freekd_mm.datasets import unlabelled

        return unlabelled.ImageFolder
    from freekd_mm import api

    return getattr(api, name)
