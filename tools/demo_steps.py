"""Runs the demo from the first picture to the exported student."""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path

import torch
from mmengine.config import Config
from rich.console import Console
from rich.progress import Progress
from torch.utils.benchmark import Timer

from freekd_mm.engine.checkpoint_hook import last_checkpoint
from freekd_mm.files import write_text
from freekd_mm.log import quiet
from freekd_mm.pages.page import parts
from freekd_mm.report.build import write_report
from freekd_mm.report.metrics import main_metrics
from freekd_mm.report.runs import NoRunError, read_run
from freekd_mm.runtime.config import build_empty
from freekd_mm.text import table
from freekd_mm.wizard.methods import prompt_modes

# Stage 1 on the toy data: short, so that it takes little of the demo's time.
PROMPT_ITERATIONS = 100
#: Pictures with the predictions of all models.
PICTURES = 4
#: By task, the command that does the same on a real data set.
ON_REAL_DATA = {
    'det': 'python tools/train.py configs/wavelet/gfl_r50_r101.py',
    'seg': 'python tools/train.py configs/wavelet/pspnet_r18_r101.py',
}
HONEST = (
    'A generated toy data set, one seed, minutes of training: it shows the steps and that everything works.',
    'It is no benchmark, and a difference of a few points between two of its models may be chance.',
)


def run_steps(root: Path, folder: Path, steps: Mapping[str, Sequence[object]]) -> None:
    """Runs tools of the repository ``root`` side by side: tool and options by the name of the step.

    What they print goes to ``<name>.log`` in the folder. Finished steps are not repeated.
    """
    waiting = {name: words for name, words in steps.items() if not (folder / f'{name}.done').is_file()}
    if not waiting:
        return
    folder.mkdir(parents=True, exist_ok=True)
    start, label = time.monotonic(), ' and '.join(waiting)
    threads = max((os.cpu_count() or 1) // len(waiting), 1)
    environment = {'OMP_NUM_THREADS': str(threads), **os.environ, 'PYTHONWARNINGS': 'ignore'}
    running = {}
    for name, (tool, *words) in waiting.items():
        command = [sys.executable, f'tools/{tool}.py', *map(str, words)]
        with open(folder / f'{name}.log', 'a') as log:
            running[name] = subprocess.Popen(command, cwd=root, env=environment, stdout=log, stderr=log)
    trainings = [folder / name for name, words in waiting.items() if words[0] == 'train']
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=None)
        while any(process.poll() is None for process in running.values()):
            time.sleep(0.5)
            parts = [progress(training) for training in trainings]
            if parts and all(total for _, total in parts):
                done, total = map(sum, zip(*parts))
                bar.update(task, completed=done, total=total)
    for name, process in running.items():
        if process.returncode != 0:
            file = folder / f'{name}.log'
            tail = '\n'.join(file.read_text(errors='replace').splitlines()[-15:])
            raise SystemExit(f'{tail}\n\nthe demo stopped: tools/{steps[name][0]}.py failed.\nThe whole log: {file}')
        write_text(folder / f'{name}.done', '')
    print(f'{label}: {timedelta(seconds=round(time.monotonic() - start))}', file=sys.stderr)


def progress(work_dir: Path) -> tuple[int, int]:
    """Returns the iteration that the log in a work directory has reached, and that at the end, 0 if not known yet."""
    try:
        run = read_run(work_dir, work_dir.name)
    except (FileNotFoundError, NoRunError):
        return 0, 0
    return run.iterations, run.planned


def run_demo(task: str, method: str, root: Path, seed: int = 0, work_dir: Path | None = None) -> list[list[str]]:
    """Trains teacher and student alone, distils, tests, exports; prints the table and returns its rows.

    The options are those of ``tools/demo.py``; ``root`` is the repository.
    """
    two_stages = bool(prompt_modes(method))
    start = time.monotonic()
    base = (work_dir or root / 'work_dirs/demo') / task
    run = functools.partial(run_steps, root, base)
    teacher, student = (f'configs/demo/{task}_{role}.py' for role in ('teacher', 'student'))

    def training(config: str | Path, folder: Path, seed: int) -> dict[str, Sequence[object]]:
        options = (f'randomness.seed={seed}', 'default_hooks.logger.interval=5')
        return {folder.name: ('train', config, '--work-dir', folder, '--resume', '--cfg-options', *options)}

    run({'scenes': ('make_scenes', Config.fromfile(root / student).data_root)})
    run(training(teacher, base / 'teacher', 0))

    alone, distilled = base / f'student_seed{seed}', base / f'{method}_seed{seed}'
    config, exported = base / 'configs' / f'{distilled.name}.py', base / f'{distilled.name}.pth'
    checkpoint = last_checkpoint(base / 'teacher')
    options = ('--method', method, '-o', config, '--teacher-checkpoint', checkpoint)
    prompt_dir = base / f'prompt_{method}'
    stage1 = ('--prompt-iters', PROMPT_ITERATIONS, '--prompt-dir', prompt_dir) if two_stages else ()
    run({f'make_config_{distilled.name}': ('make_config', student, teacher, *options, *stage1)})
    first, second = training(student, alone, seed), training(config, distilled, seed)
    prompt = config.with_name(f'{config.stem}_prompt.py')
    if two_stages:
        run({**first, **training(prompt, prompt_dir, 0)})
    run({**first, **second})
    run({f'export_{distilled.name}': ('export_student', config, last_checkpoint(distilled), '-o', exported)})

    tested: dict[str, tuple] = {
        'teacher': (teacher, checkpoint),
        'student alone': (student, last_checkpoint(alone)),
        f'student, {method}': (config, last_checkpoint(distilled)),
        'the exported file in plain MM': (student, exported),
    }
    results = {label: base / f'test_{distilled.name}_{re.sub(", | ", "_", label)}.json' for label in tested}
    tests = {out.stem: (*tested[label], '--result', out) for label, out in results.items()}
    run({name: ('test', *words, '--work-dir', base / name) for name, words in tests.items()})
    rows = []
    for label, out in results.items():
        result = json.loads(out.read_text())
        metric = main_metrics(result)[0]
        file = f'{Path(result["checkpoint"]).name} ({result["sha256"]})'
        rows.append([label, metric.cell(result[metric.key]), *measure(root / tested[label][0]), file])
    header = ['model', metric.label, 'parameters', 'ms per image', 'file (SHA-256)']
    print('\n' + table(rows, header))
    says = [*HONEST, f'On real data, with the data set that the config names: {ON_REAL_DATA[task]}']
    print('\n'.join(['', *says]))
    print(f'Everything is in {base}; {time.monotonic() - start:.0f} s in this run.')
    names = ['student alone', f'student, {method}', 'teacher']
    title = f'freekd_mm demo, generated toy data, one seed: {names[1]}'
    demo = parts.section('The demo', [parts.notes(says), parts.table(header, rows, 't' + 'n' * len(header))])
    folders = [alone, distilled, base / 'teacher']
    report, _ = write_report(folders, base / 'report.html', names, title, PICTURES, [demo])
    print(f'The report, with curves and pictures: {report}')
    return rows


def measure(config: Path) -> list[str]:
    """Returns parameters and milliseconds per image of the plain model of a config, on one thread."""
    with quiet(), torch.no_grad():
        model = build_empty(Config.fromfile(config)).eval()
        found = {'model': model, 'image': torch.zeros(1, 3, 160, 160)}
        seconds = Timer('model(image, None, mode="tensor")', globals=found).timeit(20).median
    return [f'{sum(weight.numel() for weight in model.parameters()) / 1e6:.2f} M', f'{1000 * seconds:.0f}']
