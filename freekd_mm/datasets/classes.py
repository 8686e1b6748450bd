"""Names, colours and MM metainfo of the generated scenes: things in look-alike pairs, then textured stuff."""

from __future__ import annotations

from typing import Any

# Each pair of things shares its outline and its colours and differs by fine structure alone.
_COLOURS = {
    'striped_ball': (220, 20, 60),
    'checked_ball': (255, 140, 0),
    'grate': (0, 110, 230),
    'mesh': (0, 190, 200),
    'gear': (150, 60, 200),
    'saw': (230, 90, 190),
    'sand': (222, 205, 150),
    'gravel': (130, 120, 110),
    'planks': (150, 100, 60),
    'weave': (110, 160, 90),
    'bar': (250, 240, 60),
}
CLASSES = tuple(_COLOURS)
THINGS, STUFF = CLASSES[:6], CLASSES[6:]
IGNORE_LABEL = 255

#: ``metainfo`` for ``mmdet.CocoDataset``: the things, whose COCO category ids are 1 to 6.
DET_METAINFO: dict[str, Any] = {'classes': THINGS, 'palette': [_COLOURS[name] for name in THINGS]}
#: ``metainfo`` for ``mmseg.BaseSegDataset``: all classes; the train id is the place in the tuple, 255 is ignored.
SEG_METAINFO: dict[str, Any] = {'classes': CLASSES, 'palette': [list(colour) for colour in _COLOURS.values()]}
