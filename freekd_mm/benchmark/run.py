"""What ``tools/benchmark.py`` does: runs the jobs that are not done in parallel processes, then writes the report.

Each job is a process of its own: ``python -m freekd_mm.benchmark.run <folder>``.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import time
import traceback
import uuid
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Callable

from mmengine.config import Config

from freekd_mm.benchmark import records
from freekd_mm.benchmark.images import IMAGES_FILE
from freekd_mm.benchmark.jobs import CACHE, PROMPT_PREFIX, ConfigMaker, Job, kind_folder, make_jobs
from freekd_mm.benchmark.plan import STUDENT, Plan, load_plan
from freekd_mm.benchmark.table import markdown, titles, write_plot
from freekd_mm.checkpoints.loading import load_checkpoint_file
from freekd_mm.checkpoints.saving import save_atomically
from freekd_mm.checkpoints.sources import sha256
from freekd_mm.checks import check_choice, check_positive
from freekd_mm.engine.checkpoint_hook import last_checkpoint
from freekd_mm.engine.evaluation import evaluate
from freekd_mm.engine.training import run
from freekd_mm.engine.workdir import own_work_dir
from freekd_mm.files import write_text
from freekd_mm.report.runs import read_run

POLL_SECONDS = 0.5
CONFIG, RESULT, LOG = 'config.py', 'result.json', 'log.txt'
say = functools.partial(print, flush=True)


def benchmark(
    plan_file: str,
    work_dir: Path,
    data_root: str | None = None,
    methods: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    processes: int = 1,
    options: dict[str, Any] | None = None,
    action: str = 'run',
    plots: bool = True,
    lines: Path | None = None,
) -> int:
    """Runs the jobs of a plan that are not done, then writes table and plot; returns the exit status, 1 if one failed.

    The options are those of the tool. The ``action`` is ``'run'``, or without a run ``'list'`` (the jobs) or
    ``'report'``. A file of ``lines`` under version control outlives the work directory: what it holds is not run again.
    """
    check_positive('jobs', processes, integer=True)
    whole = load_plan(plan_file)
    whole = replace(whole, options={**whole.options, **(options or {})})
    plan = whole.select(methods, seeds)
    file = lines or work_dir / f'{plan.task}.jsonl'
    kind = records.kind({'machine': records.machine()})
    maker = ConfigMaker(plan, data_root, kind_folder(work_dir, kind) / CACHE / plan.task)
    jobs_of = functools.partial(make_jobs, maker=maker, work_dir=work_dir, kind=kind)
    if action == 'report':
        report(whole, jobs_of, file, work_dir, plots)
        return 0
    jobs = jobs_of(plan)
    if action == 'list':
        done = records.latest(records.read(file))
        for job in jobs:
            state = 'to do' if job.key not in done else 'failed' if 'error' in done[job.key] else 'done'
            print(f'{state:8} {job}  {job.key[-1]}')
        return 0
    with own_work_dir(work_dir):
        if maker.few is not None:
            maker.few.write()
        failed = run_jobs(plan, file, jobs, processes)
        report(whole, jobs_of, file, work_dir, plots)
    return int(failed > 0)


def report(plan: Plan, jobs_of: Callable[[Plan], list[Job]], file: Path, work_dir: Path, plots: bool) -> None:
    """Writes table and plot beside the JSON lines and prints the table, which names runs of an older config."""
    lines = records.read(file)
    if not lines:
        print(f'no results in {file}')
        return
    _, methods, seeds, _ = zip(*map(records.key, lines))
    # Only rows that have lines: others may be unfinished.
    jobs = jobs_of(plan.select([STUDENT, *plan.methods.keys() & methods], seeds)) if plan.seeds else []
    found = records.newest(lines, {job.key[1:] for job in jobs})
    text = markdown(found, plan, work_dir)
    gone = records.latest(lines).keys() - records.latest(found)
    old = sorted(f'{method} {seed}' for _, method, seed, _ in gone if method in titles(plan))
    if old:
        text += f'\nRuns of an older config of the plan are left out ({len(old)}): {", ".join(old)}.\n'
    written = [file, write_text(file.with_name(f'{plan.name}.md'), text)]
    if plots:
        written += write_plot(found, plan, file.with_name(f'{plan.name}_test.png'))
    print(f'{text}written: {", ".join(map(str, written))}')


def run_jobs(plan: Plan, file: Path, jobs: list[Job], processes: int) -> int:
    """Runs what is not done yet, so many jobs at a time, each with one thread; returns how many failed."""
    waiting = to_do(jobs, records.latest(records.read(file)))
    say(f'{plan.name}: {len(jobs)} jobs, {len(jobs) - len(waiting)} done already')
    running: dict[Job, subprocess.Popen] = {}
    failed, total = 0, len(waiting)
    try:
        while waiting or running:
            made = {job.product for job in (*waiting, *running)}
            for job in list(waiting):
                missing = [need for need in job.needs if not need.is_file()]
                if not made.issuperset(missing):
                    waiting.remove(job)
                    failed += 1
                    say(f'left out: {job}, because a job that it needs failed')
                elif not missing and len(running) < processes:
                    waiting.remove(job)
                    running[job] = _start(job, plan)
                    say(f'started {job}, its log is {job.folder / LOG}')
            time.sleep(POLL_SECONDS)
            for job in [job for job, process in running.items() if process.poll() is not None]:
                record = _result(job, plan, running.pop(job).returncode)
                records.append(file, record)
                failed += 'error' in record
                say(f'[{total - len(waiting) - len(running)}/{total}] {_outcome(job, plan, record)}')
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
    return failed


def to_do(jobs: list[Job], done: dict[records.Key, records.Record]) -> list[Job]:
    """Returns the jobs that are not done; a teacher or prompt whose file is gone only if a job needs it."""
    waiting: list[Job] = []
    needed: set[Path | None] = set()
    for job in reversed(jobs):
        missing = job.product in needed and job.product is not None and not job.product.is_file()
        if missing or 'error' in done.get(job.key, {'error': 'never run'}):
            waiting.append(job)
            needed.update(job.needs)
    return waiting[::-1]


def _start(job: Job, plan: Plan) -> subprocess.Popen:
    job.folder.mkdir(parents=True, exist_ok=True)
    (job.folder / RESULT).unlink(missing_ok=True)
    cfg = job.config()
    cfg.benchmark = dict(method=job.method, metric=plan.metric, product=str(job.product or ''))
    cfg.dump(str(job.folder / CONFIG))
    command = [sys.executable, '-m', 'freekd_mm.benchmark.run', str(job.folder)]
    with open(job.folder / LOG, 'a', encoding='utf-8') as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment())


def environment() -> dict[str, Any]:
    """Returns the environment of a job: one thread, and this process's modules, as those that a config lies beside."""
    return {**os.environ, 'OMP_NUM_THREADS': '1', 'MKL_NUM_THREADS': '1', 'PYTHONPATH': os.pathsep.join(sys.path)}


def _result(job: Job, plan: Plan, code: int) -> records.Record:
    file, (_, method, seed, digest) = job.folder / RESULT, job.key
    result = json.loads(file.read_text()) if file.is_file() else {'error': f'the process ended with status {code}'}
    # Lines say which teacher was used.
    teacher = {'teacher': sha256(job.needs[0])[:12]} if job.needs and job.needs[0].is_file() else {}
    known = {'task': plan.task, 'method': method, 'seed': seed, 'hash': digest, 'metric': plan.metric}
    return {**known, **result, **teacher, 'commit': records.commit(), 'machine': records.machine()}


def _outcome(job: Job, plan: Plan, record: records.Record) -> str:
    if 'error' in record:
        return f'FAILED {job}: {record["error"]} (see {job.folder / "log.txt"})'
    splits = [split for split in ('val', 'test') if split in record]
    values = [f'{split} {record[split][plan.metric] * plan.factor:.1f} {plan.unit}'.rstrip() for split in splits]
    return f'done {job}: {", ".join(values) or "written"} in {timedelta(seconds=round(record["train_seconds"]))}'


def run_job(folder: Path) -> dict[str, Any]:
    """Trains the config in a folder, evaluates on the data that chooses (val) and on the data that reports (test)."""
    cfg = Config.fromfile(folder / CONFIG)
    job = cfg.pop('benchmark')
    cfg.work_dir = str(folder)
    cfg.experiment_name = f'{job.method}-{uuid.uuid4().hex}'
    if 'pseudo_labels' in cfg:
        return _label(cfg, job.product)
    # Only the last one counts, and many runs fill a disk.
    cfg.merge_from_dict({'default_hooks.checkpoint.max_keep_ckpts': 1})
    resumed = last_checkpoint(folder) is not None
    cpu = time.process_time()
    run(cfg, resume='auto')
    # Only of this process: more exact on a busy machine. Without the part before a resume.
    result: dict[str, Any] = {'cpu_seconds': round(time.process_time() - cpu, 1), 'resumed': resumed}
    trained = read_run(folder, job.method)
    # mmengine names the folder of each start by its time.
    starts = [time.mktime(time.strptime(log.parents[1].name, '%Y%m%d_%H%M%S')) for log in trained.logs]
    result['train_seconds'] = round(sum(log.stat().st_mtime for log in trained.logs) - sum(starts), 1)
    result['history'] = [[step / trained.steps, value] for step, value in trained.metric(job.metric)]
    if job.method.startswith(PROMPT_PREFIX):
        if not Path(job.product).is_file():
            raise RuntimeError(f'stage 1 should have written {job.product}, but did not')
        return result
    checkpoint = last_checkpoint(folder)
    if checkpoint is None:
        raise RuntimeError(f'there should be a checkpoint in {folder}, but there is none: see its CheckpointHook')
    for split in ('val', 'test'):
        result[split] = _evaluate(cfg, str(checkpoint), split, job.metric)
    if job.product:
        save_atomically({'state_dict': load_checkpoint_file(checkpoint)['state_dict']}, job.product)
    return result


def _label(cfg: Config, out: str) -> dict[str, Any]:
    from freekd_mm.datasets.pseudo_labels import write_pseudo_labels

    start = time.monotonic()
    found = write_pseudo_labels(cfg, out=out, **cfg.pseudo_labels)
    if not found.labelled:
        raise RuntimeError(f'the teacher finds nothing: lower pseudo_score={cfg.pseudo_labels.score}')
    counts = {'pictures': found.pictures, 'labelled': found.labelled, found.unit: found.counts}
    return {**counts, 'train_seconds': round(time.monotonic() - start, 1)}


def _evaluate(cfg: Config, checkpoint: str, split: str, metric: str) -> dict[str, float]:
    cfg = cfg.copy()
    cfg.test_dataloader, cfg.test_evaluator = cfg[f'{split}_dataloader'], cfg[f'{split}_evaluator']
    images = dict(type='freekd_mm.BenchmarkImagesHook', file=str(Path(cfg.work_dir) / IMAGES_FILE))
    cfg.custom_hooks = [images] if split == 'test' else []
    cfg.experiment_name = f'{split}-{uuid.uuid4().hex}'
    # Of a detector that finds no box at all MMDetection gives no number.
    found = {key: float(value) for key, value in evaluate(cfg, checkpoint).items()} or {metric: 0.0}
    check_choice('metric of the plan', metric, found)
    return found


if __name__ == '__main__':
    work_dir = Path(sys.argv[1])
    try:
        outcome = run_job(work_dir)
    except Exception as error:
        traceback.print_exc()
        outcome = {'error': f'{type(error).__name__}: {error}'.splitlines()[0]}
    write_text(work_dir / RESULT, json.dumps(outcome))
    sys.exit('error' in outcome)
