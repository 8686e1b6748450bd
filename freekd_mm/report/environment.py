"""What the head of an mmengine log says about the machine and the versions."""

from __future__ import annotations

import re
from pathlib import Path

#: Not of the machine, but drawn by it where the config gives none.
SEED = 'seed'
#: Names in the log that are worth a line, by what the report calls them.
WANTED = {
    'Python': 'Python',
    'PyTorch': 'PyTorch',
    'TorchVision': 'TorchVision',
    'OpenCV': 'OpenCV',
    'MMEngine': 'MMEngine',
    'CUDA available': 'CUDA available',
    'NVCC': 'CUDA compiler',
    'GPU number': 'processes',
    'seed': SEED,
    'Distributed training': 'distributed',
    'sys.platform': 'system',
}
RULE = '-' * 30
HEAD = 200
LINE = re.compile(r'^ {4}(?P<name>[A-Za-z][\w ,.]*?): (?P<value>.+)$')


def read_environment(log: Path) -> dict[str, str]:
    """Returns versions and devices from the head of a text log; empty where there is none."""
    if not log.is_file():
        return {}
    found: dict[str, str] = {}
    rules = 0
    with open(log, encoding='utf-8', errors='replace') as lines:
        for _, line in zip(range(HEAD), lines):
            rules += line.startswith(RULE)
            match = LINE.match(line.rstrip())
            if rules == 1 and match:
                name, value = match['name'], match['value'].strip()
                if name.startswith('GPU ') and name != 'GPU number':
                    found['GPU'] = value
                elif name in WANTED:
                    found[WANTED[name]] = value.split(' (')[0] if name == 'Python' else value
    return found
