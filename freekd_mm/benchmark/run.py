"""What ``tools/benchmark.py`` does: runs the jobs that are not done in parallel processes, then writes the report."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from freekd_mm.benchmark import records
from freekd_mm.benchmark.jobs import CACHE, ConfigMaker, Job, kind_folder, make_jobs
from freekd_mm.benchmark.plan import Plan, load_plan
from freekd_mm.benchmark.table import markdown, write_plots
from freekd_mm.benchmark.worker import CONFIG, JOB, RESULT
from freekd_mm.checkpoints.sources import sha256
from freekd_mm.checks import check_choice, check_positive
from freekd_mm.engine.workdir import own_work_dir
from freekd_mm.files import write_text
from freekd_mm.progress import format_seconds
from freekd_mm.report.runs import NoRunError, read_run

POLL_SECONDS, STATUS_SECONDS = 0.5, 30.0
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
    """Runs the jobs of a plan that are not done, then writes table and plots; returns the exit status, 1 if one failed.

    The options are those of the tool. The ``action`` is ``'run'``, or without a run ``'list'`` (the jobs) or
    ``'report'``. A file of ``lines`` under version control outlives the work directory: what it holds is not run again.
    """
    check_choice('action', action, ('run', 'list', 'report'))
    check_positive('jobs', processes, integer=True)
    whole = load_plan(plan_file)
    whole = replace(whole, options={**whole.options, **(options or {})})
    plan = whole.select(methods, seeds)
    file = lines or work_dir / f'{plan.task}.jsonl'
    if action == 'report':
        report(whole, file, work_dir, plots)
        return 0
    kind = records.kind({'machine': records.machine()})
    maker = ConfigMaker(plan, data_root, kind_folder(work_dir, kind) / CACHE / plan.task)
    jobs = make_jobs(plan, maker, work_dir, kind)
    if action == 'list':
        done = records.latest(records.read(file))
        for job in jobs:
            state = 'to do' if job.key not in done else 'failed' if 'error' in done[job.key] else 'done'
            print(f'{state:8} {job.name}  {job.key[-1]}')
        return 0
    with own_work_dir(work_dir):
        if maker.few is not None:
            maker.few.write()
        failed = run_jobs(plan, file, jobs, processes)
        report(whole, file, work_dir, plots)
    return int(failed > 0)


def report(plan: Plan, file: Path, work_dir: Path, plots: bool) -> None:
    """Writes table and plots beside the JSON lines and prints the table."""
    found = records.newest(records.read(file))
    if not found:
        print(f'no results in {file}')
        return
    text = markdown(found, plan, work_dir)
    page = write_text(file.with_name(f'{plan.name}.md'), text)
    written = write_plots(found, plan, file.parent) if plots else []
    print(f'{text}written: {", ".join(str(path) for path in (file, page, *written))}')


def run_jobs(plan: Plan, file: Path, jobs: list[Job], processes: int) -> int:
    """Runs what is not done yet, so many jobs at a time, each with one thread; returns how many failed."""
    waiting = to_do(jobs, records.latest(records.read(file)))
    say(f'{plan.name}: {len(jobs)} jobs, {len(jobs) - len(waiting)} done already')
    running: dict[Job, subprocess.Popen] = {}
    failed, total, shown = 0, len(waiting), time.monotonic()
    try:
        while waiting or running:
            made = {job.product for job in (*waiting, *running)}
            for job in list(waiting):
                missing = [need for need in job.needs if not need.is_file()]
                if not made.issuperset(missing):
                    waiting.remove(job)
                    failed += 1
                    say(f'left out: {job.name}, because a job that it needs failed')
                elif not missing and len(running) < processes:
                    waiting.remove(job)
                    running[job] = _start(job, plan)
                    say(f'started {job.name}: {job.folder}')
            time.sleep(POLL_SECONDS)
            for job in [job for job, process in running.items() if process.poll() is not None]:
                record = _result(job, plan, running.pop(job).returncode)
                records.append(file, record)
                failed += 'error' in record
                say(f'[{total - len(waiting) - len(running)}/{total}] {_outcome(job, plan, record)}')
            if time.monotonic() - shown > STATUS_SECONDS:
                shown = time.monotonic()
                for job in running:
                    say(f'  {job.name}: {_progress(job, plan)}')
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
    job.config().dump(str(job.folder / CONFIG))
    write_text(job.folder / JOB, json.dumps({'method': job.method, 'metric': plan.metric}))
    command = [sys.executable, '-m', 'freekd_mm.benchmark.worker', str(job.folder)]
    with open(job.folder / 'log.txt', 'a', encoding='utf-8') as log:
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
        return f'FAILED {job.name}: {record["error"]} (see {job.folder / "log.txt"})'
    found = {split: record[split].get(plan.metric) for split in ('val', 'test') if split in record}
    values = [f'{split} {_shown(value, plan)}' for split, value in found.items()]
    return f'done {job.name}: {", ".join(values) or "written"} in {format_seconds(record["train_seconds"])}'


def _shown(value: float | None, plan: Plan) -> str:
    return f'no {plan.metric}' if value is None else f'{value * plan.factor:.1f} {plan.unit}'.strip()


def _progress(job: Job, plan: Plan) -> str:
    """Says how far a run is, as its log does."""
    try:
        run = read_run(job.folder, job.name)
    except NoRunError:
        return 'starting'
    values = [f', val {_shown(value, plan)}' for _, value in run.metric(plan.metric)[-1:]]
    said = f'{run.iterations} of {run.planned or "?"} iterations{"".join(values)}'
    times = run.series('time')
    if run.planned and times:
        said += f', {format_seconds(times[-1][1] * max(run.planned - run.iterations, 0))} left'
    return said
