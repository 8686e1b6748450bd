"""Runs the demo from the first picture to the exported student."""

from __future__ import annotations

import json
import sys
import time
import warnings
from pathlib import Path

from mmengine.config import Config

from freekd_mm.demo.demo_page import Model, write_demo_report
from freekd_mm.demo.steps import Command, Steps, Training
from freekd_mm.demo.tasks import TASKS, Task
from freekd_mm.text import table
from freekd_mm.wizard.methods import METHODS, parse_methods

# Stage 1 on the toy data: short, and its share of the demo's minutes is small.
PROMPT_ITERATIONS = 100


def run_demo(task_name: str, method: str, root: Path, seed: int = 0, work_dir: Path | None = None) -> list[dict]:
    """Trains teacher and student alone, distils, tests, exports; prints the table and returns its rows.

    Args:
        task_name: ``'det'`` or ``'seg'``.
        method: A method of ``tools/make_config.py``.
        root: The repository.
        seed: Seed of both students.
        work_dir: Where to write; ``work_dirs/demo`` by default.
    """
    start = time.monotonic()
    task = TASKS[task_name]
    base = (work_dir or root / 'work_dirs/demo') / task_name
    steps = Steps(root, base)
    data = Config.fromfile(root / task.student).data_root
    steps.run(Command('scenes', 'drew the scenes', [sys.executable, 'tools/make_scenes.py', data]))

    teacher = _training('teacher', task.teacher, base / 'teacher', 0, root)
    alone = _training(f'student_seed{seed}', task.student, base / f'student_seed{seed}', seed, root)
    steps.train(teacher)

    name = f'{method}_seed{seed}'
    config = base / 'configs' / f'{name}.py'
    make = [
        *(sys.executable, 'tools/make_config.py', task.student, task.teacher, '--method', method, '-o', str(config)),
        *('--teacher-checkpoint', str(newest_checkpoint(teacher.work_dir))),
        *('--prompt-iters', str(PROMPT_ITERATIONS), '--prompt-dir', str(base / 'prompt')),
    ]
    steps.run(Command(f'make_config_{name}', f'wrote {config.name}', make))
    distilled = _training(name, str(config), base / name, seed, root)
    uses_prompt = any(METHODS[part].uses_prompt for part in parse_methods(method))
    if uses_prompt:
        steps.train(alone, _prompt(base, config))
        steps.train(distilled)
    else:
        steps.train(alone, distilled)

    runs = [
        ('teacher', task.teacher, teacher),
        ('student alone', task.student, alone),
        (f'student, {method}', str(config), distilled),
    ]
    exported = base / f'{name}.pth'
    export = [
        *(sys.executable, 'tools/export_student.py', str(config)),
        *(str(newest_checkpoint(distilled.work_dir)), '-o', str(exported)),
    ]
    steps.run(
        *(_test(base, label, path, run.name, newest_checkpoint(run.work_dir)) for label, path, run in runs),
        Command(f'export_{name}', f'exported {exported.name}', export),
    )
    plain = 'the exported file in plain MM'
    steps.run(_test(base, plain, task.student, f'{name}_plain', exported))
    rows = [_row(base, label, path, run.name, task, root) for label, path, run in runs]
    rows.append(_row(base, plain, task.student, f'{name}_plain', task, root))

    cells, header = [_cells(row, task) for row in rows], ['model', task.unit, 'parameters', 'ms per image']
    print('\n' + table(cells, header))
    print(
        '\nOne seed on generated pictures: a toy that shows the way, not a benchmark.\n'
        f'On real data: {task.on_real_data}\n'
        f'Everything is in {base}; {time.monotonic() - start:.0f} s in this run.'
    )
    models = [Model(label, root / path, run.work_dir, newest_checkpoint(run.work_dir)) for label, path, run in runs]
    report = write_demo_report(base / 'report.html', task, models, header, cells)
    print(f'The report, with curves and pictures: {report}')
    return rows


def _training(name: str, config: str, work_dir: Path, seed: int, root: Path) -> Training:
    cfg = Config.fromfile(root / config) if (root / config).is_file() else None
    return Training(name, f'training {name}', config, work_dir, _iterations(cfg) if cfg else 0, seed)


def _iterations(cfg: Config) -> int:
    """Returns the iterations of a run: given, or epochs times batches of the scenes."""
    if cfg.train_cfg.get('max_iters'):
        return int(cfg.train_cfg.max_iters)
    annotations = json.loads((Path(cfg.data_root) / 'scenes.json').read_text())['settings']
    return int(cfg.train_cfg.max_epochs * (annotations['num_train'] // cfg.train_dataloader.batch_size))


def _prompt(base: Path, config: Path) -> Training:
    stage1 = config.with_name(f'{config.stem}_prompt.py')
    return Training('prompt', 'stage 1, the prompt', str(stage1), base / 'prompt', PROMPT_ITERATIONS)


def newest_checkpoint(work_dir: Path) -> Path:
    """Returns the last checkpoint of a run."""
    return Path((work_dir / 'last_checkpoint').read_text().strip())


def _test(base: Path, label: str, config: str, name: str, checkpoint: Path) -> Command:
    """Returns the command that evaluates a checkpoint."""
    options = ('--out', str(base / f'test_{name}.json'), '--work-dir', str(base / f'test_{name}'))
    return Command(
        f'test_{name}', f'tested {label}', [sys.executable, 'tools/test.py', config, str(checkpoint), *options]
    )


def _row(base: Path, label: str, config: str, name: str, task: Task, root: Path) -> dict:
    """Returns a row of the table: what the evaluation found, and measures of the model."""
    score = json.loads((base / f'test_{name}.json').read_text())[task.metric] * task.factor
    return {'label': label, 'score': score, **measure(root / config)}


def measure(config: Path) -> dict:
    """Returns parameters and milliseconds per image of the plain model of a config, on one thread."""
    import torch

    from freekd_mm.runtime.config import build_model, find_model, without_pretrained

    model_cfg, scope = find_model(Config.fromfile(config))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        model = build_model(without_pretrained(model_cfg), scope).eval()
    image = torch.zeros(1, 3, 160, 160)
    torch.set_num_threads(1)
    times = []
    with torch.no_grad():
        for _ in range(20):
            start = time.perf_counter()
            model(image, None, mode='tensor')
            times.append(time.perf_counter() - start)
    # The quickest: whatever else the computer does only adds to it.
    return {'parameters': sum(p.numel() for p in model.parameters()), 'milliseconds': 1000 * min(times)}


def _cells(row: dict, task: Task) -> list[str]:
    return [row['label'], f'{row["score"]:.1f}', f'{row["parameters"] / 1e6:.2f} M', f'{row["milliseconds"]:.0f}']
