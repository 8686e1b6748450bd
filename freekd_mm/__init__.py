"""Frequency-domain knowledge distillation for MMDetection and MMSegmentation."""

from freekd_mm.compat import install as _install_compat
from freekd_mm.version import __version__

# Registers an import hook only: neither torch nor any MM package is imported here.
_install_compat()

__all__ = ['__version__']
