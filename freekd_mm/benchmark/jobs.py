"""The jobs of a plan: the teacher, its prompts, and every method with every seed."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Callable, Tuple

from mmengine.config import Config

from freekd_mm.benchmark.configs import ConfigMaker, config_hash
from freekd_mm.benchmark.plan import STUDENT, TEACHER, Plan
from freekd_mm.benchmark.records import Key
from freekd_mm.prompts.prompt_file import PROMPT_FILE

PROMPT_PREFIX = 'prompt:'
TEACHER_FILE = 'teacher.pth'
RUNS = 'runs'
Make = Callable[[], Config]
Needs = Tuple[Path, ...]


@dataclass(frozen=True)
class Job:
    """One training run.

    Attributes:
        kind: Kind of machine that it runs on.
        method: Name of the row, or ``'prompt:<name>'``.
        seed: Its seed.
        folder: Where it works.
        hash: Hash of its config.
        config: Makes its config.
        product: File that other jobs need; it exists when the job is done.
        needs: Files of other jobs.
    """

    kind: str
    method: str
    seed: int
    folder: Path
    hash: str
    config: Make
    product: Path | None = None
    needs: Needs = ()

    @property
    def name(self) -> str:
        """Short name for the log."""
        return f'{self.method} seed {self.seed}'

    @property
    def key(self) -> Key:
        """What its record is known by."""
        return self.kind, self.method, self.seed, self.hash


def make_jobs(plan: Plan, maker: ConfigMaker, work_dir: Path, kind: str = '') -> list[Job]:
    """Returns all jobs, in the order in which they should start.

    Args:
        plan: The plan.
        maker: Makes its configs.
        work_dir: Work directory.
        kind: Kind of machine. It has a folder of its own there: ``cache/`` in it holds teachers and prompts for all
            plans, ``runs/`` the rest.
    """
    work_dir = kind_folder(work_dir, kind)
    cache, runs = work_dir / 'cache' / plan.task, work_dir / RUNS / plan.task

    def job(parent: Path, method: str, seed: int, make: Make, needs: Needs = (), product: str = '') -> Job:
        digest = config_hash(make(), work_dir)
        folder = parent / folder_name(method, seed, digest)
        return Job(kind, method, seed, folder, digest, make, folder / product if product else None, needs)

    teacher = job(cache, TEACHER, plan.teacher_seed, maker.teacher, product=TEACHER_FILE)
    checkpoint = teacher.folder / TEACHER_FILE
    jobs = [teacher, *(job(runs, STUDENT, seed, partial(maker.student, seed)) for seed in plan.seeds)]
    prompts: dict[str | None, Path | None] = {None: None}
    for seed, (name, method) in itertools.product(plan.seeds, plan.methods.items()):
        if method.prompt not in prompts:
            # Right before its first use: what needs no prompt does not wait for it.
            make = partial(maker.prompt, str(method.prompt), checkpoint)
            made = job(cache, f'{PROMPT_PREFIX}{method.prompt}', plan.teacher_seed, make, (checkpoint,), PROMPT_FILE)
            prompts[method.prompt] = made.product
            jobs.append(made)
        prompt = prompts[method.prompt]
        needs = () if method.alone else (checkpoint,) if prompt is None else (checkpoint, prompt)
        jobs.append(job(runs, name, seed, partial(maker.distilled, method, seed, checkpoint, prompt), needs))
    return jobs


def kind_folder(work_dir: Path, kind: str) -> Path:
    """Returns the folder of one kind of machine."""
    return work_dir.resolve() / _safe(kind)


def folder_name(method: str, seed: int, digest: str) -> str:
    """Returns the name of a run's folder."""
    return f'{_safe(method)}-seed{seed}-{digest}'


def _safe(name: str) -> str:
    return ''.join(letter if letter.isalnum() or letter in '-_.' else '_' for letter in name)
