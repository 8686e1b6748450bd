"""Lets configs of the onedl line inherit ``mmseg::...``.

Their mmengine still takes the scope ``mmseg`` for the distribution ``mmsegmentation``, which is called
``onedl-mmsegmentation`` there, and says that it is not installed. The other scopes have the name of their
module and are found. The entry is changed when ``mmengine.config.utils`` is imported, or at once when it is.
"""

import importlib.machinery
import importlib.metadata
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

UTILS = 'mmengine.config.utils'


def mend(utils: ModuleType) -> None:
    """Points the scope at the module when only the fork's distribution is there."""
    if _is_installed('onedl-mmsegmentation') and not _is_installed('mmsegmentation'):
        utils.MODULE2PACKAGE['mmseg'] = 'mmseg'


def _is_installed(distribution: str) -> bool:
    try:
        importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


class _MendingLoader(Loader):
    """Loads the module as it is, then mends it."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        mend(module)


class ScopeFinder(MetaPathFinder):
    """Answers for ``mmengine.config.utils``; leaves every other import alone."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Finds mmengine's own module and puts the mending loader around its loader."""
        if fullname != UTILS:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _MendingLoader(spec.loader)
        return spec


def install() -> None:
    """Puts the finder in front of the others, once."""
    if UTILS in sys.modules:
        mend(sys.modules[UTILS])
    if not any(isinstance(finder, ScopeFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, ScopeFinder())
