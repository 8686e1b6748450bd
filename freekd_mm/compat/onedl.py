"""Lets configs of the onedl line inherit ``mmseg::...``.

Their mmengine still takes the scope ``mmseg`` for the distribution ``mmsegmentation``, which is called
``onedl-mmsegmentation`` there, and says that it is not installed. The other scopes have the name of their
module and are found. The entry is changed when ``mmengine.config.utils`` is imported, or at once when it is.
"""

from __future__ import annotations

import importlib.metadata
from types import ModuleType

from freekd_mm.compat.on_import import when_imported

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


def install() -> None:
    """Mends the module as soon as it is imported."""
    when_imported(UTILS, mend)
