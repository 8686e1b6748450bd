"""Runs jobs in parallel processes, shows their progress, and keeps their results."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from freekd_mm.benchmark import records
from freekd_mm.benchmark.jobs import Job
from freekd_mm.benchmark.plan import Plan
from freekd_mm.benchmark.worker import CONFIG, JOB, RESULT
from freekd_mm.checkpoints.sources import sha256
from freekd_mm.files import lock, write_text
from freekd_mm.progress import format_seconds
from freekd_mm.report.runs import NoRunError, read_run

POLL_SECONDS, STATUS_SECONDS = 0.5, 30.0
say = functools.partial(print, flush=True)


def run_jobs(plan: Plan, file: Path, jobs: list[Job], processes: int) -> int:
    """Runs what is not done yet, so many jobs at a time, each with one thread; returns how many failed."""
    waiting = to_do(jobs, records.latest(records.read(file)))
    say(f'{plan.name}: {len(jobs)} jobs, {len(jobs) - len(waiting)} done already')
    running: dict[Job, subprocess.Popen] = {}
    failed, finished, total = 0, 0, len(waiting)
    shown = time.monotonic()
    try:
        while waiting or running:
            makers = {job.product for job in (*waiting, *running)}
            for job in [job for job in waiting if not all(file.is_file() or file in makers for file in job.needs)]:
                waiting.remove(job)
                failed += 1
                say(f'left out: {job.name}, because a job that it needs failed')
            for job in [job for job in waiting if all(file.is_file() for file in job.needs)]:
                if len(running) >= processes:
                    break
                waiting.remove(job)
                running[job] = _start(job, plan)
                say(f'started {job.name}: {job.folder}')
            time.sleep(POLL_SECONDS)
            for job in [job for job, process in running.items() if process.poll() is not None]:
                finished += 1
                record = _result(job, plan, running.pop(job).returncode)
                records.append(file, record)
                failed += 'error' in record
                say(f'[{finished}/{total}] {_outcome(job, plan, record)}')
            if time.monotonic() - shown > STATUS_SECONDS:
                shown = time.monotonic()
                for job in running:
                    say(f'  {job.name}: {_progress(job, plan)}')
                say(f'  {finished} of {total} done')
    finally:
        _stop(*running.values())
    return failed


def _start(job: Job, plan: Plan) -> subprocess.Popen:
    job.folder.mkdir(parents=True, exist_ok=True)
    (job.folder / RESULT).unlink(missing_ok=True)
    job.config().dump(str(job.folder / CONFIG))
    write_text(job.folder / JOB, json.dumps(_known(job, plan)))
    command = [sys.executable, '-m', 'freekd_mm.benchmark.worker', str(job.folder)]
    with open(job.folder / 'log.txt', 'a', encoding='utf-8') as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment())


def _known(job: Job, plan: Plan) -> records.Record:
    _, method, seed, digest = job.key
    return {'task': plan.task, 'method': method, 'seed': seed, 'hash': digest, 'metric': plan.metric}


def _result(job: Job, plan: Plan, code: int) -> records.Record:
    file = job.folder / RESULT
    teacher = next((file for file in job.needs if file.is_file()), None)
    return {
        **_known(job, plan),
        **(json.loads(file.read_text()) if file.is_file() else {'error': f'the process ended with status {code}'}),
        # Lines say which teacher was used.
        **({'teacher': sha256(teacher)[:12]} if teacher else {}),
        'commit': records.commit(),
        'machine': records.machine(),
    }


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
    said = [
        f'{run.iterations} iterations',
        *(f'val {_shown(value, plan)}' for _, value in run.metric(plan.metric)[-1:]),
    ]
    times = run.series('time')
    if run.planned and times:
        left = format_seconds(times[-1][1] * max(run.planned - run.iterations, 0))
        said += [f'{100 * run.iterations / run.planned:.0f}%', f'{left} left']
    return ', '.join(said)


def environment() -> dict[str, Any]:
    """Returns the environment of a job: one thread, and this process's modules, as those that a config lies beside."""
    return {**os.environ, 'OMP_NUM_THREADS': '1', 'MKL_NUM_THREADS': '1', 'PYTHONPATH': os.pathsep.join(sys.path)}


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


def _stop(*processes: subprocess.Popen) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()


@contextlib.contextmanager
def only_one(work_dir: Path) -> Iterator[None]:
    """Keeps two benchmarks from working in one folder."""
    work_dir.mkdir(parents=True, exist_ok=True)
    with open(work_dir / 'lock', 'w', encoding='utf-8') as file:
        try:
            lock(file)
        except BlockingIOError as error:
            raise RuntimeError(f'{work_dir} should have one benchmark at a time, but another one is running') from error
        except OSError:  # no locks on this file system or Windows
            pass
        yield
