"""Importing this module makes the changes of ``patches.py``: one line for a config or script that uses only mmrazor."""

from __future__ import annotations

from freekd_mm.compat import install

install()
