"""Visualizers of several runs in one process."""

from __future__ import annotations

from typing import Any


def forget_visualizer(visualizer: Any) -> None:
    """Lets the next run of this process have a visualizer of its own.

    mmengine finds visualizers by name, and nearly all configs call theirs the same: stage 2 would log into the
    folder of stage 1, and a second evaluation into that of the first, which may be gone.
    """
    name = visualizer.instance_name
    for kind in type(visualizer).__mro__:
        instances: dict[str, Any] = getattr(kind, '_instance_dict', {})
        if instances.get(name) is visualizer:
            del instances[name]
