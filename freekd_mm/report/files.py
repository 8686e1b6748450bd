"""The files of a run that numbers come from: checkpoints, and evaluations of checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from freekd_mm.checkpoints.sources import short_hash
from freekd_mm.engine.evaluation import RESULT

#: Stored with the metrics of an evaluation, but not a result.
TIMES = ('data_time', 'time', 'step')


class Tested(NamedTuple):
    """The evaluation of a checkpoint."""

    file: Path  # the JSON file with the result
    checkpoint: Path  # the file that was tested
    sha256: str  # the first digits of its hash
    values: dict[str, float]  # metrics by name

    def is_of(self, folder: Path) -> bool:
        """Whether the tested file is one of this work directory, and still the same."""
        own = folder / self.checkpoint.name
        return own.is_file() and short_hash(own) == self.sha256


def read_tests(folder: Path) -> list[Tested]:
    """Returns the evaluations below a work directory that say which file they tested, oldest first."""
    found = []
    for file in sorted(folder.rglob(RESULT), key=lambda file: file.stat().st_mtime):
        try:
            row = json.loads(file.read_text(encoding='utf-8'))
            values = {key: value for key, value in row.items() if isinstance(value, (int, float)) and key not in TIMES}
            found.append(Tested(file, Path(row['checkpoint']), row['sha256'], values))
        except (json.JSONDecodeError, KeyError, TypeError):
            continue
    return found


def last_checkpoint(folder: Path) -> Path | None:
    """Returns the last checkpoint of a run, also if its folder was moved; None without one."""
    pointer = folder / 'last_checkpoint'
    file = folder / Path(pointer.read_text(encoding='utf-8').strip()).name if pointer.is_file() else None
    return file if file and file.is_file() else None


def inside(folder: Path, file: Path) -> str:
    """Returns a file's path from the work directory's name on, or its last two parts if it is elsewhere."""
    folder, file = folder.resolve(), file.resolve()
    return str(file.relative_to(folder.parent)) if folder in file.parents else '/'.join(('…', *file.parts[-2:]))
