"""The JSON lines: one for every finished run, with all that is needed to repeat it."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, Dict, Tuple

from freekd_mm.files import write_text

Record = Dict[str, Any]
Key = Tuple[str, str, int, str]


def machine() -> dict[str, Any]:
    """Returns what a reader must know about this machine."""
    import torch

    file = Path('/proc/cpuinfo')
    name = re.search(r'^model name\s*: (.+)$', file.read_text() if file.is_file() else '', re.MULTILINE)
    return {
        'cpu': name[1].strip() if name else platform.processor() or platform.machine(),
        # With other instructions sums round differently, and the same seed gives another result.
        'instructions': re.findall('CPU capability usage: (.+)', torch.__config__.show())[0],
        'cores': os.cpu_count(),
        'gpu': torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        'python': platform.python_version(),
        'torch': torch.__version__,
    }


def commit() -> str:
    """Returns the commit of the code, with a ``+`` if the package has uncommitted changes; empty without git."""

    def git(*words: str) -> str:
        command = ['git', '-C', str(Path(__file__).parents[1]), *words]
        return subprocess.check_output(command, text=True, stderr=subprocess.DEVNULL).strip()

    try:
        return git('rev-parse', '--short=12', 'HEAD') + ('+' if git('status', '--porcelain', '--', '.') else '')
    except (OSError, subprocess.CalledProcessError):
        return ''


def append(file: Path, record: Record) -> None:
    """Adds a line and flushes it to the disk; an incomplete last line of a crash is removed."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.is_file() and not file.read_bytes().endswith(b'\n'):
        write_text(file, ''.join(f'{line}\n' for line in map(json.dumps, read(file))))
    with open(file, 'a', encoding='utf-8') as stream:
        stream.write(json.dumps({**record, 'time': time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}) + '\n')
        stream.flush()
        os.fsync(stream.fileno())


def read(file: Path) -> list[Record]:
    """Reads the lines; an incomplete last line of a crash is left out."""
    records = []
    for number, line in enumerate(file.read_text(encoding='utf-8').splitlines(True) if file.is_file() else ()):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            if line.endswith('\n'):
                raise ValueError(f'{file}:{number + 1} should be a line of JSON, but got {line[:60]!r}') from error
    return records


def kind(record: Record) -> str:
    """Returns the kind of machine of a line: on another kind, a seed is another training.

    The GPU, or the CPU with its instructions: AMD's and Intel's round differently. Empty in a line that does not say.
    """
    where = record.get('machine') or {}
    return where.get('gpu') or ' '.join(filter(None, map(where.get, ('cpu', 'instructions'))))


def key(record: Record) -> Key:
    """Returns the key of a run: kind of machine, method, seed and hash of the config."""
    return kind(record), record['method'], record['seed'], record['hash']


def latest(records: Iterable[Record]) -> dict[Key, Record]:
    """Returns the last record of every run: a retry replaces a failure."""
    return {key(record): record for record in records}


def newest(records: Sequence[Record], today: Collection[tuple] = ()) -> list[Record]:
    """Returns the last record of each method, seed and kind of machine.

    Once a method has a record of today's plan, given by method, seed and hash, those of an older config do not count.
    """
    begun = {record['method'] for record in records if key(record)[1:] in today}
    current = [record for record in records if record['method'] not in begun or key(record)[1:] in today]
    return list({(record['method'], record['seed'], kind(record)): record for record in current}.values())


def by_kind(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Returns the records of each kind of machine."""
    return {where: [r for r in records if kind(r) == where] for where in dict.fromkeys(map(kind, records))}
