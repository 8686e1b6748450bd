"""Names, colours and MM metainfo of the generated scenes: things in look-alike pairs, then textured stuff."""

from __future__ import annotations

from typing import Any

# Each pair shares its outline and its colours and differs by fine structure alone.
THINGS: tuple[str, ...] = ('striped_ball', 'checked_ball', 'grate', 'mesh', 'gear', 'saw')
STUFF: tuple[str, ...] = ('sand', 'gravel', 'planks', 'weave', 'bar')
CLASSES: tuple[str, ...] = THINGS + STUFF
IGNORE_LABEL = 255

PALETTE: tuple[tuple[int, int, int], ...] = (
    (220, 20, 60),
    (255, 140, 0),
    (0, 110, 230),
    (0, 190, 200),
    (150, 60, 200),
    (230, 90, 190),
    (222, 205, 150),
    (130, 120, 110),
    (150, 100, 60),
    (110, 160, 90),
    (250, 240, 60),
)

#: ``metainfo`` for ``mmdet.CocoDataset``: the things, whose COCO category ids are 1 to 6.
DET_METAINFO: dict[str, Any] = {'classes': THINGS, 'palette': list(PALETTE[: len(THINGS)])}

#: ``metainfo`` for ``mmseg.BaseSegDataset``: all classes; the train id is the place in the tuple, 255 is ignored.
SEG_METAINFO: dict[str, Any] = {'classes': CLASSES, 'palette': [list(colour) for colour in PALETTE]}
