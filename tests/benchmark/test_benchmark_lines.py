"""The lines that we publish are of today's plans: else their runs would be repeated, and their rows replaced."""

from __future__ import annotations

from pathlib import Path

import pytest

from freekd_mm.benchmark import records
from freekd_mm.benchmark.jobs import ConfigMaker, make_jobs
from freekd_mm.benchmark.plan import load_plan
from freekd_mm.compat import install

pytest.importorskip('mmdet')
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize('name', ['bccd', 'camvid'])
def test_published_lines_are_of_todays_plan(name: str, tmp_path: Path) -> None:
    install()
    plan = load_plan(str(ROOT / f'configs/benchmark/{name}.yaml'))
    jobs = make_jobs(plan, ConfigMaker(plan, tmp_path / 'data', tmp_path), tmp_path, 'any')
    today = {job.key[1:3]: job.key[-1] for job in jobs}
    found = records.newest(records.read(ROOT / f'docs/benchmarks/{name}.jsonl'))
    wrong = [
        (line['method'], line['seed']) for line in found if today.get((line['method'], line['seed'])) != line['hash']
    ]
    assert len(found) > 20
    assert not wrong
