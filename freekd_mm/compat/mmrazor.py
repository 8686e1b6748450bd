"""Makes mmrazor 1.0.0 import and run on PyTorch >= 2 and with mmcv > 2.1.0.

Two things stop it, both at import: ``mmrazor.structures.quantization`` uses quantization internals that PyTorch 2.0
removed, and ``mmrazor/__init__.py`` asserts an upper bound on mmcv.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from types import ModuleType

from freekd_mm.compat.versions import installed_torch, installed_version

QUANTIZATION = 'mmrazor.structures.quantization'
MMCV_MAXIMUM = '2.1.0'


def install() -> None:
    """Puts the stand-in in place, before anything imports mmrazor; imports mmrazor itself only to pass the bound."""
    if (installed_torch() or (0, 0)) >= (2, 0):
        module = ModuleType(QUANTIZATION, 'Stands for a part of mmrazor 1.0.0 that does not work on PyTorch >= 2.0.')
        vars(module).update(BackendConfigs={}, QConfigHandler=None, __all__=['BackendConfigs', 'QConfigHandler'])
        sys.modules.setdefault(QUANTIZATION, module)
    version = installed_version('mmcv') or installed_version('onedl-mmcv') or '0'
    # Two numbers are enough: 2.1.0 is the last of its line.
    if tuple(map(int, version.split('.')[:2])) > (2, 1) and importlib.util.find_spec('mmrazor'):
        with contextlib.suppress(ImportError):  # a broken mmcv is not ours to report
            import mmcv

            mmcv.__version__, own = MMCV_MAXIMUM, mmcv.__version__
            try:
                importlib.import_module('mmrazor')
            finally:
                mmcv.__version__ = own
