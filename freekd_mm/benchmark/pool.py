"""Runs jobs in parallel processes, shows their progress, and keeps their results."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from freekd_mm.benchmark import records
from freekd_mm.benchmark.jobs import Job
from freekd_mm.benchmark.plan import Plan
from freekd_mm.benchmark.status import STATUS, read_json
from freekd_mm.benchmark.worker import CONFIG, JOB, RESULT
from freekd_mm.files import lock, write_text
from freekd_mm.progress import format_seconds

POLL_SECONDS = 0.5


@dataclass
class Pool:
    """Runs the jobs of one plan.

    Args:
        plan: The plan.
        file: JSON lines of the results.
        processes: Jobs at a time, each with one thread.
        status_seconds: Time between two looks at the running jobs.
        stream: Where to report.
    """

    plan: Plan
    file: Path
    processes: int = 1
    status_seconds: float = 30.0
    stream: TextIO = field(default_factory=lambda: sys.stdout)

    def run(self, jobs: list[Job]) -> int:
        """Runs what is not done yet; returns the number of jobs that failed."""
        done = records.latest(records.read(self.file))
        waiting = to_do(jobs, done)
        self._say(f'{self.plan.name}: {len(jobs)} jobs, {len(jobs) - len(waiting)} done already')
        running: dict[Job, subprocess.Popen] = {}
        failed, finished, total = 0, 0, len(waiting)
        shown = time.monotonic()
        try:
            while waiting or running:
                failed += self._skip_hopeless(waiting, running)
                for job in [job for job in waiting if all(file.is_file() for file in job.needs)]:
                    if len(running) >= self.processes:
                        break
                    waiting.remove(job)
                    running[job] = self._start(job)
                time.sleep(POLL_SECONDS)
                for job in [job for job, process in running.items() if process.poll() is not None]:
                    finished += 1
                    failed += self._collect(job, running.pop(job).returncode, f'{finished}/{total}')
                if time.monotonic() - shown > self.status_seconds:
                    shown = time.monotonic()
                    self._show(running, finished, total)
        finally:
            _stop(running.values())
        return failed

    def _skip_hopeless(self, waiting: list[Job], running: dict[Job, subprocess.Popen]) -> int:
        """Leaves out jobs that need a file that no job will make."""
        makers = {job.product for job in (*waiting, *running)}
        hopeless = [job for job in waiting if any(not file.is_file() and file not in makers for file in job.needs)]
        for job in hopeless:
            waiting.remove(job)
            self._say(f'left out: {job.name}, because a job that it needs failed')
        return len(hopeless)

    def _start(self, job: Job) -> subprocess.Popen:
        job.folder.mkdir(parents=True, exist_ok=True)
        (job.folder / RESULT).unlink(missing_ok=True)
        job.config().dump(str(job.folder / CONFIG))
        known = {'method': job.method, 'seed': job.seed, 'hash': job.hash, 'metric': self.plan.metric}
        write_text(job.folder / JOB, json.dumps({'task': self.plan.task, **known}))
        log = open(job.folder / 'log.txt', 'a', encoding='utf-8')  # noqa: SIM115 - the process owns it
        with log:
            process = subprocess.Popen(
                [sys.executable, '-m', 'freekd_mm.benchmark.worker', str(job.folder)],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment(),
            )
        self._say(f'started {job.name}: {job.folder}')
        return process

    def _collect(self, job: Job, code: int, count: str) -> int:
        result = read_json(job.folder / RESULT) or {'error': f'the process ended with status {code}'}
        record = {
            **(read_json(job.folder / JOB) or {}),
            **result,
            **({'teacher': _digest(job.needs[0])} if job.needs else {}),
            'commit': records.commit(),
            'machine': records.machine(),
        }
        records.append(self.file, record)
        if 'error' in result:
            self._say(f'[{count}] FAILED {job.name}: {result["error"]} (see {job.folder / "log.txt"})')
            return 1
        values = ', '.join(f'{split} {self._value(result[split])}' for split in ('val', 'test') if split in result)
        self._say(
            f'[{count}] done {job.name}: {values or "prompt written"} in {format_seconds(result["train_seconds"])}'
        )
        return 0

    def _value(self, metrics: dict[str, float]) -> str:
        value = metrics.get(self.plan.metric)
        return f'no {self.plan.metric}' if value is None else f'{value * self.plan.factor:.1f} {self.plan.unit}'.strip()

    def _show(self, running: dict[Job, subprocess.Popen], finished: int, total: int) -> None:
        for job in running:
            status = read_json(job.folder / STATUS)
            if status is None:
                self._say(f'  {job.name}: starting')
                continue
            share = 100 * status['iter'] / status['max_iters']
            history = status['history']
            metric = f', val {history[-1][1] * self.plan.factor:.1f} at {100 * history[-1][0]:.0f}%' if history else ''
            left = f', {format_seconds(status["eta"])} left' if status['eta'] is not None else ''
            self._say(f'  {job.name}: {share:.0f}% (epoch {status["epoch"] + 1}){metric}{left}')
        self._say(f'  {finished} of {total} done')

    def _say(self, text: str) -> None:
        print(text, file=self.stream, flush=True)


def environment() -> dict[str, str]:
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


def _digest(file: Path) -> str:
    """Returns the first 12 digits of a file's SHA-256: lines say which teacher was used."""
    return hashlib.sha256(file.read_bytes()).hexdigest()[:12] if file.is_file() else ''


def _stop(processes: Collection[subprocess.Popen]) -> None:
    for process in processes:
        process.send_signal(signal.SIGTERM)
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        if process.poll() is None:
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
