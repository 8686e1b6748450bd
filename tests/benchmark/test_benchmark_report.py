"""The JSON lines, and the table and plots made of them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from freekd_mm.benchmark import records
from freekd_mm.benchmark.plan import Method, Plan
from freekd_mm.benchmark.plots import write_plots
from freekd_mm.benchmark.run import newest
from freekd_mm.benchmark.table import markdown, plain, summarize

PLAN = Plan(
    name='toy',
    student='s.py',
    teacher='t.py',
    metric='acc',
    seeds=(0, 1),
    methods={'pkd': Method('pkd', 'pkd', title='PKD'), 'freekd': Method('freekd', 'freekd', title='FreeKD')},
    unit='points',
    factor=100,
)


def record(method: str, seed: int, value: float | None, **more: object) -> records.Record:
    line = {'method': method, 'seed': seed, 'hash': 'h', 'train_seconds': 60.0, **more}
    if value is None:
        return {**line, 'error': 'ValueError: diverged'}
    return {**line, 'val': {'acc': value}, 'test': {'acc': value + 0.1}, 'history': [[0.5, value / 2], [1.0, value]]}


RECORDS = [
    record('teacher', 0, 0.8),
    record('student', 0, 0.5),
    record('student', 1, 0.4),
    record('pkd', 0, 0.56),
    record('pkd', 1, 0.50),
    record('freekd', 1, 0.55),
    record('freekd', 0, None),
]


def test_differences_are_paired_by_seed():
    found = summarize(RECORDS, PLAN, 'val')
    pkd = found['pkd']
    assert pkd.mean == pytest.approx(53)
    assert pkd.gains == pytest.approx({(0, ''): 6, (1, ''): 10})
    assert pkd.gain == pytest.approx(8)
    # Sample deviation of 6 and 10 is 2.83; over the root of 2 that is 2.
    assert pkd.gain_error == pytest.approx(2)
    assert pkd.closed == pytest.approx(8 / (80 - 45))
    # Only seed 1 finished: compared with the student of seed 1 alone, 40, not with the mean.
    assert found['freekd'].gain == pytest.approx(15)
    assert found['freekd'].closed == pytest.approx(15 / (80 - 40))
    assert math.isnan(found['freekd'].gain_error)
    assert math.isnan(found['teacher'].gain)


def test_no_gap_is_closed_where_the_teacher_is_no_better():
    found = summarize([record('teacher', 0, 0.4), record('student', 0, 0.5), record('pkd', 0, 0.6)], PLAN, 'val')
    assert math.isnan(found['pkd'].closed)


def test_the_table_shows_failures_and_says_how_many_seeds():
    lines = markdown(RECORDS, PLAN).splitlines()
    assert [line.split('|')[1].strip() for line in lines[2:]] == ['teacher', 'student alone', 'PKD', 'FreeKD']
    assert '| PKD | 2 | 53.0 ± 4.2 | +8.0 ± 2.0 | 23 % | 63.0 ± 4.2 | +8.0 ± 2.0 | 23 % | 1.0 |' in lines
    assert lines[-1].startswith('| FreeKD | 1 (1 failed) | 55.0 | +15.0 | 38 % |')
    assert len({line.count('|') for line in lines}) == 1


def test_a_method_that_only_failed_is_still_there():
    assert '| PKD | 0 (1 failed) |' in markdown([record('pkd', 0, None)], PLAN)


def test_a_bar_in_a_title_is_no_border_of_a_cell():
    plan = replace(PLAN, methods={'pkd': Method('pkd', 'pkd', title='|F|² | raw')})
    lines = markdown(RECORDS, plan).splitlines()
    assert r'| \|F\|² \| raw | 2 |' in lines[-1]
    assert plain(RECORDS, plan).splitlines()[-1].startswith('|F|² | raw     2  ')


def test_a_seed_on_other_instructions_is_another_run_and_the_table_says_so():
    first, second = ({'machine': {'instructions': name}} for name in ('AVX2', 'AVX512'))
    mixed = [
        *(record('teacher', 0, 0.8, **first), record('student', 0, 0.5, **first), record('pkd', 0, 0.6, **first)),
        *(record('teacher', 0, 0.7, **second), record('student', 0, 0.4, **second), record('pkd', 0, 0.44, **second)),
        record('freekd', 0, 0.7, **first),
    ]
    found = summarize(newest(mixed), PLAN, 'val')
    assert found['pkd'].gains == pytest.approx({(0, 'AVX2'): 10, (0, 'AVX512'): 4})
    assert found['freekd'].gains == pytest.approx({(0, 'AVX2'): 20})
    # Of the teacher on its own machine: 80 - 50.
    assert found['freekd'].closed == pytest.approx(20 / 30)
    assert 'CPUs with other instructions: AVX2 (4 runs), AVX512 (3 runs)' in markdown(mixed, PLAN)
    assert 'AVX2 (4 runs)' in plain(mixed, PLAN)
    # A line that does not name them is not of another kind.
    assert 'instructions' not in markdown([*mixed[:3], record('pkd', 1, 0.5)], PLAN)


def test_runs_of_an_older_config_do_not_count():
    old, other = record('pkd', 0, 0.9, machine={'instructions': 'AVX2'}), record('pkd', 0, 0.5, hash='new')
    assert newest([old, other]) == [other]


def test_plots_are_written(tmp_path):
    pytest.importorskip('matplotlib')
    files = write_plots(RECORDS, PLAN, tmp_path)
    assert [file.name for file in files] == ['toy_val.png', 'toy_test.png', 'toy_training.png']
    assert all(file.read_bytes().startswith(b'\x89PNG') for file in files)


def test_lines_survive_a_crash(tmp_path):
    file = tmp_path / 'sub' / 'runs.jsonl'
    assert records.read(file) == []
    records.append(file, record('pkd', 0, None))
    records.append(file, record('pkd', 0, 0.5))
    with open(file, 'a') as stream:
        stream.write('{"method": "half')
    found = records.read(file)
    assert len(found) == 2
    # A retry takes the place of the failure.
    assert 'error' not in records.latest(found)['pkd', 0, 'h']
    with open(file, 'a') as stream:
        stream.write('\n{}\n')
    with pytest.raises(ValueError, match=r'runs.jsonl:3 should be a line of JSON'):
        records.read(file)


def test_appending_after_a_cut_line_starts_a_new_one(tmp_path):
    file = tmp_path / 'runs.jsonl'
    file.write_text('{"method": "half')
    records.append(file, record('pkd', 0, 0.5))
    assert [line['method'] for line in records.read(file)] == ['pkd']
