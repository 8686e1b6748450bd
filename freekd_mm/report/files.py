"""The files of a run that numbers come from: checkpoints, and evaluations of checkpoints."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from freekd_mm.checkpoints.sources import short_hash
from freekd_mm.engine.evaluation import RESULT

#: Stored with the metrics of an evaluation, but not a result.
TIMES = ('data_time', 'time', 'step')


@dataclass(frozen=True)
class Tested:
    """The evaluation of a checkpoint.

    Attributes:
        file: The JSON file with the result.
        checkpoint: The file that was tested.
        sha256: The first digits of its hash.
        values: Metrics by name.
    """

    file: Path
    checkpoint: Path
    sha256: str
    values: dict[str, float]

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
