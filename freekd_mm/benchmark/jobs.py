"""The jobs of a plan: the teacher, its prompts, and every method with every seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config

from freekd_mm.benchmark.configs import ConfigMaker, config_hash
from freekd_mm.benchmark.plan import STUDENT, TEACHER, Plan
from freekd_mm.benchmark.records import Key
from freekd_mm.prompts.prompt_file import PROMPT_FILE

PROMPT_PREFIX = 'prompt:'
TEACHER_FILE = 'teacher.pth'
RUNS = 'runs'


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
    config: Callable[[], Config]
    product: Path | None = None
    needs: tuple[Path, ...] = ()

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

    def job(method: str, seed: int, make: Callable[[], Config], parent: Path, **files: object) -> Job:
        digest = config_hash(make(), work_dir)
        folder = parent / folder_name(method, seed, digest)
        product = files.pop('product', None)
        return Job(kind, method, seed, folder, digest, make, product and folder / str(product), **files)  # type: ignore[arg-type]

    cache = work_dir / 'cache' / plan.task
    teacher = job(TEACHER, plan.teacher_seed, maker.teacher, cache, product=TEACHER_FILE)
    checkpoint = teacher.product
    assert checkpoint is not None
    prompts = {}
    for name in dict.fromkeys(method.prompt for method in plan.methods.values() if method.prompt is not None):
        prompts[name] = job(
            PROMPT_PREFIX + name,
            plan.teacher_seed,
            lambda name=name: maker.prompt(name, checkpoint),  # type: ignore[misc]
            cache,
            product=PROMPT_FILE,
            needs=(checkpoint,),
        )
    runs = work_dir / RUNS / plan.task
    jobs = [teacher]
    for seed in plan.seeds:
        jobs.append(job(STUDENT, seed, lambda seed=seed: maker.student(seed), runs))  # type: ignore[misc]
    for seed in plan.seeds:
        for method in plan.methods.values():
            prompt = None
            if method.prompt is not None:
                prompt = prompts[method.prompt].product
                # Right before its first use: what needs no prompt does not wait for it.
                if prompts[method.prompt] not in jobs:
                    jobs.append(prompts[method.prompt])
            jobs.append(
                job(
                    method.name,
                    seed,
                    lambda method=method, seed=seed, prompt=prompt: maker.distilled(  # type: ignore[misc]
                        method, seed, checkpoint, prompt
                    ),
                    runs,
                    needs=() if method.alone else (checkpoint,) if prompt is None else (checkpoint, prompt),
                )
            )
    return jobs


def kind_folder(work_dir: Path, kind: str) -> Path:
    """Returns the folder of one kind of machine."""
    return work_dir.resolve() / _safe(kind)


def folder_name(method: str, seed: int, digest: str) -> str:
    """Returns the name of a run's folder."""
    return f'{_safe(method)}-seed{seed}-{digest}'


def _safe(name: str) -> str:
    return ''.join(letter if letter.isalnum() or letter in '-_.' else '_' for letter in name)
