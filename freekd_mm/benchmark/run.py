"""What ``tools/benchmark.py`` does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from freekd_mm.benchmark import records
from freekd_mm.benchmark.configs import ConfigMaker
from freekd_mm.benchmark.jobs import CACHE, kind_folder, make_jobs
from freekd_mm.benchmark.plan import Plan, load_plan
from freekd_mm.benchmark.plots import write_plots
from freekd_mm.benchmark.pool import only_one, run_jobs
from freekd_mm.benchmark.table import markdown
from freekd_mm.checks import check_choice, check_positive
from freekd_mm.files import write_text


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
    """Runs the jobs of a plan that are not done, then writes table and plots.

    Args:
        plan_file: YAML plan.
        work_dir: Gets a folder for this kind of machine with the teacher, the prompts and the runs.
        data_root: Folder of the data.
        methods: Patterns of the methods to run; all by default.
        seeds: Seeds to run; the plan's by default.
        processes: Jobs at a time.
        options: Overrides of both configs, ``{'train_cfg.max_epochs': 1}``.
        action: ``'run'``, or without a run ``'list'`` (the jobs) or ``'report'``.
        plots: Write PNG files.
        lines: JSON lines of the results, table and plots beside them; ``<work_dir>/<task>.jsonl`` by default. A file
            under version control outlives the work directory: what it holds is not run again.

    Returns:
        The exit status: 1 if a job failed.
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
            record = done.get(job.key)
            state = 'to do' if record is None else 'failed' if 'error' in record else 'done'
            print(f'{state:8} {job.name}  {job.key[-1]}')
        return 0
    with only_one(work_dir):
        if maker.few is not None:
            maker.few.write()
        failed = run_jobs(plan, file, jobs, processes)
        report(whole, file, work_dir, plots)
    return 1 if failed else 0


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
