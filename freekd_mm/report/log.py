"""What the text log of mmengine says: versions, devices, the length of an epoch."""

from __future__ import annotations

import re
from pathlib import Path

#: Not of the machine, but drawn by it if the config gives none.
SEED = 'seed'
#: The names in the log of what the report shows, by the report's names.
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
#: ``Epoch(train)  [1][ 30/36]``.
EPOCH = re.compile(r'Epoch\(train\)\s+\[\s*\d+\]\[\s*\d+/(\d+)\]')
LINE = re.compile(r'^ {4}(?P<name>[A-Za-z][\w ,.]*?): (?P<value>.+)$')


def read_environment(log: Path) -> dict[str, str]:
    """Returns versions and devices from the head of a text log; empty if there is none."""
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


def iterations_per_epoch(log: Path) -> int:
    """Returns the iterations of an epoch, from the first line of the training; 0 if there is none."""
    if log.is_file():
        with open(log, encoding='utf-8', errors='replace') as lines:
            for line in lines:
                match = EPOCH.search(line)
                if match:
                    return int(match[1])
    return 0
