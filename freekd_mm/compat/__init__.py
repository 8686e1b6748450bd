"""What differs between versions (``versions.py``), and every change to other packages (``patches.py``)."""

from __future__ import annotations

from freekd_mm.compat.versions import cache

__all__ = ['install']


@cache
def install() -> None:
    """Makes the process-wide changes of :data:`freekd_mm.compat.patches.PATCHES`, once.

    The tools, the Python calls, our models and our hooks do it by themselves. ``FREEKD_MM_NO_PATCHES=1`` leaves the
    changes out, and a line of the log says what then does not hold.
    """
    from freekd_mm.compat.patches import install_patches

    install_patches()
