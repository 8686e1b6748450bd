"""Makes mmrazor 1.0.0 import and run on PyTorch >= 2 and with mmcv > 2.1.0.

Two things stop it, both at import: ``mmrazor.structures.quantization`` uses quantization internals that
PyTorch 2.0 removed, and ``mmrazor/__init__.py`` asserts an upper bound on mmcv. A finder on
``sys.meta_path`` puts a stand-in in place of the first and satisfies the second. It acts only when
mmrazor is imported, and imports nothing itself.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

from freekd_mm.compat.versions import installed_torch

QUANTIZATION = 'mmrazor.structures.quantization'
MMCV_MAXIMUM = '2.1.0'


class QuantizationUnavailable:
    """Stands for every name of ``mmrazor.structures.quantization``: importable, not usable."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        raise RuntimeError(
            'mmrazor 1.0.0 quantization does not work on PyTorch >= 2.0; freekd_mm replaces that part of '
            'mmrazor by a stand-in so that its distillation works. Use PyTorch 1.13 for quantization.'
        )


class _QuantizationLoader(Loader):
    """Makes the stand-in package."""

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = ModuleType(spec.name)
        module.BackendConfigs = {}  # type: ignore[attr-defined]
        module.QConfigHandler = QuantizationUnavailable  # type: ignore[attr-defined]
        module.__all__ = ['BackendConfigs', 'QConfigHandler']  # type: ignore[attr-defined]
        return module

    def exec_module(self, module: ModuleType) -> None:
        pass


class _BoundLoader(Loader):
    """Runs ``mmrazor/__init__.py`` while mmcv reports the newest version that mmrazor knows."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        import mmcv
        from mmengine.utils import digit_version

        version = mmcv.__version__
        if digit_version(version) > digit_version(MMCV_MAXIMUM):
            mmcv.__version__ = MMCV_MAXIMUM
        try:
            self.loader.exec_module(module)
        finally:
            mmcv.__version__ = version


class MMRazorFinder(MetaPathFinder):
    """Answers for ``mmrazor`` and its quantization package; leaves every other import alone."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Returns the spec of the two modules that need a change, None for all others."""
        if fullname == QUANTIZATION and (installed_torch() or (0, 0)) >= (2, 0):
            return ModuleSpec(fullname, _QuantizationLoader(), is_package=True)
        if fullname == 'mmrazor':
            spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
            if spec is not None and spec.loader is not None:
                spec.loader = _BoundLoader(spec.loader)
            return spec
        return None


def install() -> None:
    """Puts the finder in front of the others, once."""
    if not any(isinstance(finder, MMRazorFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, MMRazorFinder())
