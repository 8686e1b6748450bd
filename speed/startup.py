"""How long imports and tools take until something happens: seconds of CPU of fresh processes."""

from __future__ import annotations

import importlib.util
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from speed.tables import Report
from speed.timing import Options, Turns

ROOT = Path(__file__).resolve().parents[1]
IMPORTS = ('torch', 'mmengine.registry, torch', 'freekd_mm', 'freekd_mm.frequency', 'freekd_mm.losses', 'mmdet.apis')
STUDENT_CONFIG = """
_base_ = ['mmdet::retinanet/retinanet_r18_fpn_1x_coco.py']
model = dict(backbone=dict(init_cfg=None, base_channels=8, stem_channels=8), neck=dict(in_channels=[8, 16, 32, 64]))
pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=(64, 64), keep_ratio=True),
    dict(type='PackDetInputs'),
]
train_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False, dataset=dict(
    data_root={root!r}, data_prefix=dict(img='train2017/'), ann_file='annotations/instances_train2017.json',
    metainfo={metainfo!r}, pipeline=pipeline))
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=1)
param_scheduler = []
val_dataloader = val_evaluator = val_cfg = None
default_hooks = dict(checkpoint=None)
work_dir = {work!r}
"""
DISTILLED_CONFIG = """
_base_ = [{student!r}]
model = dict(
    _delete_=True, type='freekd_mm.DistilledModel', architecture={{{{_base_.model}}}},
    teacher=dict(model={{{{_base_.model}}}}, allow_random=True), probe_size=(64, 64),
    distill=dict(wavelet=dict(student='neck', loss=dict(type='freekd_mm.WaveletLoss', channels=256))))
work_dir = {work!r}
"""


def run(command: Sequence[str], clock: str) -> float:
    """Returns the seconds of a process: of its CPUs, or of the wall."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
    result = subprocess.run(
        [sys.executable, *command],
        env={**os.environ, 'PYTHONPATH': paths, 'OMP_NUM_THREADS': '1'},
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode != 0:
        raise RuntimeError(f'{" ".join(command)} failed:\n{result.stdout[-2000:]}{result.stderr[-3000:]}')
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if clock == 'wall':
        return time.perf_counter() - start
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def mmdet_train() -> Path | None:
    """Returns mmdet's own train script, where its distribution brought it."""
    spec = importlib.util.find_spec('mmdet')
    script = Path(spec.origin).parent / '.mim' / 'tools' / 'train.py' if spec and spec.origin else None
    return script if script and script.is_file() else None


def commands_of(folder: Path, quick: bool) -> dict[str, list[str]]:
    """Returns the command lines by name."""
    sys.path.append(str(ROOT / 'tools'))
    from scenes import DET_METAINFO, write_scenes

    imports = ('freekd_mm',) if quick else IMPORTS
    commands = {f'import {names}': ['-c', f'import {names}'] for names in imports}
    tools = {'tools/train.py': str(ROOT / 'tools' / 'train.py')}
    theirs = mmdet_train()
    if theirs is not None and not quick:
        tools["mmdet's train.py"] = str(theirs)
    commands.update({f'{name} --help': [path, '--help'] for name, path in tools.items()})
    if quick:
        return commands
    root = write_scenes(folder / 'scenes', num_train=4, num_val=1, size=64, seed=0)
    student, distilled = folder / 'student.py', folder / 'distilled.py'
    work = str(folder / 'work')
    student.write_text(STUDENT_CONFIG.format(root=f'{root}/', metainfo=DET_METAINFO, work=work))
    distilled.write_text(DISTILLED_CONFIG.format(student=str(student), work=work))
    commands.update({f'{name}, one step, plain student': [path, str(student)] for name, path in tools.items()})
    commands['tools/train.py, one step, distilled'] = [tools['tools/train.py'], str(distilled)]
    return commands


def measure(options: Options) -> Report:
    """Measures all commands in turns."""
    report = Report('startup', 'Start-up')
    with tempfile.TemporaryDirectory() as folder:
        commands = commands_of(Path(folder), options.quick)
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(options.with_at_most(3).rounds + 1):
            for name, command in commands.items():
                seconds[name].append(run(command, options.clock))
    turns = Turns({name: values[1:] for name, values in seconds.items()})
    report.say(f'Fresh processes of one thread, {options.clock} clock, the files in the page cache.')
    rows = []
    for name in commands:
        rows.append([f'`{name}`' if name.startswith('import') else name, turns.milliseconds(name)])
        report.record(name, milliseconds=turns.milliseconds(name))
    report.table(['', 'ms'], rows)
    return report
