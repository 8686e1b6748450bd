"""The jobs of a plan: the teacher, its prompts, and every method with every seed."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Callable

from mmengine.config import Config

from freekd_mm.benchmark.configs import ConfigMaker, config_hash
from freekd_mm.benchmark.plan import STUDENT, TEACHER, Plan
from freekd_mm.benchmark.records import Key
from freekd_mm.prompts.prompt_file import PROMPT_FILE

PROMPT_PREFIX = 'prompt:'
PSEUDO = 'pseudo labels'
TEACHER_FILE, PSEUDO_FILE = 'teacher.pth', 'pseudo.json'
RUNS, CACHE = 'runs', 'cache'


@dataclass(frozen=True)
class Job:
    """One training run."""

    key: Key  # what its record is known by
    folder: Path
    config: Callable[[], Config]
    product: Path | None = None  # file that other jobs need; it exists when the job is done
    needs: tuple[Path, ...] = ()  # files of other jobs

    @property
    def method(self) -> str:
        """Name of the row, ``'prompt:<name>'``, or ``'pseudo labels'``."""
        return self.key[1]

    @property
    def name(self) -> str:
        """Short name for the log."""
        return f'{self.method} seed {self.key[2]}'


def make_jobs(plan: Plan, maker: ConfigMaker, work_dir: Path, kind: str = '') -> list[Job]:
    """Returns all jobs of a plan, in the order in which they should start.

    A kind of machine has a folder of its own in the work directory: ``cache/`` in it holds teachers and prompts for all
    plans, ``runs/`` the rest.
    """

    def job(place: str, method: str, seed: int, make: Callable[[], Config], *needs: Path, product: str = '') -> Job:
        key = kind, method, seed, config_hash(make(), kind_folder(work_dir, kind))
        folder = run_folder(work_dir, plan.task, key, place)
        return Job(key, folder, make, folder / product if product else None, needs)

    teacher = job(CACHE, TEACHER, plan.teacher_seed, maker.teacher, product=TEACHER_FILE)
    checkpoint = teacher.folder / TEACHER_FILE
    jobs = [teacher, *(job(RUNS, STUDENT, seed, partial(maker.student, seed)) for seed in plan.seeds)]
    prompts: dict[str | None, Path | None] = {None: None}
    pseudo: Path | None = None
    for seed, (name, method) in itertools.product(plan.seeds, plan.methods.items()):
        if method.prompt not in prompts:
            # Right before its first use: what needs no prompt does not wait for it.
            make = partial(maker.prompt, str(method.prompt), checkpoint)
            title = f'{PROMPT_PREFIX}{method.prompt}'
            jobs.append(job(CACHE, title, plan.teacher_seed, make, checkpoint, product=PROMPT_FILE))
            prompts[method.prompt] = jobs[-1].product
        if method.rest == 'pseudo' and pseudo is None:
            make = partial(maker.pseudo, checkpoint)
            jobs.append(job(CACHE, PSEUDO, plan.teacher_seed, make, checkpoint, product=PSEUDO_FILE))
            pseudo = jobs[-1].product
        labels = pseudo if method.rest == 'pseudo' else None
        needs = filter(None, (None if method.alone else checkpoint, prompts[method.prompt], labels))
        make = partial(maker.distilled, method, seed, checkpoint, prompts[method.prompt], labels)
        jobs.append(job(RUNS, name, seed, make, *needs))
    return jobs


def kind_folder(work_dir: Path, kind: str) -> Path:
    """Returns the folder of one kind of machine."""
    return work_dir.resolve() / _safe(kind)


def run_folder(work_dir: Path, task: str, key: Key, place: str = RUNS) -> Path:
    """Returns where the run of a record works."""
    kind, method, seed, digest = key
    return kind_folder(work_dir, kind) / place / task / f'{_safe(method)}-seed{seed}-{digest}'


def _safe(name: str) -> str:
    return ''.join(letter if letter.isalnum() or letter in '-_.' else '_' for letter in name)
