"""What the text log of mmengine says: versions, devices, the length of an epoch."""

from __future__ import annotations

import re
from pathlib import Path

#: Not of the machine, but drawn by it if the config gives none.
SEED = 'seed'
#: What the report shows, beside the names of the GPUs.
SHOWN = ('Python', 'PyTorch', 'TorchVision', 'OpenCV', 'MMEngine', 'CUDA available', 'NVCC', 'GPU number', SEED,
         'Distributed training', 'sys.platform')  # fmt: skip
RULE = re.compile(r'^-{30,}$', re.MULTILINE)
LINE = re.compile(r'^ {4}([A-Za-z][\w ,.]*?): (.+)$', re.MULTILINE)
#: ``Epoch(train)  [1][ 30/36]``.
EPOCH = re.compile(r'Epoch\(train\)\s+\[\s*\d+\]\[\s*\d+/(\d+)\]')


def read_log(log: Path) -> tuple[dict[str, str], int]:
    """Returns versions and devices, and the iterations of an epoch; empty and 0 if the log does not say them."""
    text = log.read_text(encoding='utf-8', errors='replace') if log.is_file() else ''
    found = {}
    for name, value in LINE.findall(''.join(RULE.split(text, 2)[1:2])):
        if name in SHOWN:
            found[name] = value.split(' (')[0] if name == 'Python' else value.strip()
        elif name.startswith('GPU '):
            found['GPU'] = value.strip()
    epoch = EPOCH.search(text)
    return found, int(epoch[1]) if epoch else 0
