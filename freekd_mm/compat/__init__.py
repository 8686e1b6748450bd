"""What makes dead or broken dependencies work, in one place. Nothing here is imported before it is needed."""

from __future__ import annotations

from freekd_mm.compat import mmrazor, onedl

__all__ = ['install']


def install() -> None:
    """Registers the import hooks."""
    mmrazor.install()
    onedl.install()
