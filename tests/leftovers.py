"""What a run of mmengine leaves in its process."""

from __future__ import annotations

from mmengine.logging import MessageHub
from mmengine.registry import DefaultScope
from mmengine.visualization import Visualizer


def clear_leftovers() -> None:
    """Forgets the default scope, the message hubs and the visualizers of earlier runs.

    mmdet and mmseg name theirs 'visualizer': a later run would log to the folder of the first one. A hub is named
    after the config and the second: two short runs of one file would share it.
    """
    DefaultScope._instance_dict.clear()
    MessageHub._instance_dict.clear()
    classes = [Visualizer]
    while classes:
        visualizer = classes.pop()
        visualizer._instance_dict.clear()
        classes += visualizer.__subclasses__()
