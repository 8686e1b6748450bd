"""What differs between versions (``versions.py``), and every change to other packages (``patches.py``)."""

from __future__ import annotations

from freekd_mm.compat.versions import cache


@cache
def install() -> None:
    """Makes the process-wide changes of :data:`freekd_mm.compat.patches.PATCHES`, once.

    The tools, the Python calls, our models and our hooks do it automatically. ``FREEKD_MM_NO_PATCHES=1`` leaves the
    changes out, and the log says what does not hold then.
    """
    from freekd_mm.compat.patches import install_patches

    install_patches()
