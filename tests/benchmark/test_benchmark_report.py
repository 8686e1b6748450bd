"""The JSON lines, and the table and plots made of them."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
import pytest

from freekd_mm.benchmark import records, table
from freekd_mm.benchmark.images import image_interval, interval, p_value
from freekd_mm.benchmark.plan import Method, Plan
from freekd_mm.benchmark.table import comparisons, summarize, write_plot

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


def markdown(*arguments: object) -> str:
    """The page without the spaces that align its columns."""
    return re.sub(' +', ' ', table.markdown(*arguments))


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
    assert pkd.closed == pytest.approx(8 / (80 - 45))
    # Only seed 1 finished: compared with the student of seed 1 alone, 40, not with the mean.
    assert found['freekd'].gain == pytest.approx(15)
    assert found['freekd'].closed == pytest.approx(15 / (80 - 40))
    assert math.isnan(found['teacher'].gain)


def test_no_gap_is_closed_where_the_teacher_is_no_better():
    found = summarize([record('teacher', 0, 0.4), record('student', 0, 0.5), record('pkd', 0, 0.6)], PLAN, 'val')
    assert math.isnan(found['pkd'].closed)


def test_the_table_shows_failures_and_says_how_many_seeds():
    lines = [line for line in markdown(RECORDS, PLAN).splitlines() if line.startswith('|')]
    assert [line.split('|')[1].strip() for line in lines[2:]] == ['teacher', 'student alone', 'PKD', 'FreeKD']
    # Of two differences, 6 and 10, with one degree of freedom: 8 -+ 12.71 * 2.
    gain = '+8.0 (-17.4 to +33.4) | 23 %'
    assert f'| PKD | 2 | 53.0 ± 4.2 | {gain} | 63.0 ± 4.2 | {gain} | 1.0 |' in lines
    assert lines[-1].startswith('| FreeKD | 1 (1 failed) | 55.0 | +15.0 | 38 % |')
    assert len({line.count('|') for line in lines}) == 1


def test_a_method_that_only_failed_is_still_there():
    assert '| PKD | 0 (1 failed) |' in markdown([record('pkd', 0, None)], PLAN)


def test_a_bar_in_a_title_is_no_border_of_a_cell():
    plan = replace(PLAN, methods={'pkd': Method('pkd', 'pkd', title='|F|² | raw')})
    lines = markdown(RECORDS, plan).splitlines()
    assert r'| \|F\|² \| raw | 2 |' in lines[-1]
    aligned = table.markdown(RECORDS, plan).splitlines()
    assert {len(line) for line in aligned if line.startswith('|')} == {len(aligned[-1])}


#: What a line says of machines, by their kind.
MACHINES = {
    'AVX2': {'instructions': 'AVX2'},
    'AVX512': {'instructions': 'AVX512'},
    'AMD EPYC AVX512': {'cpu': 'AMD EPYC', 'instructions': 'AVX512'},
    'Xeon AVX512': {'cpu': 'Xeon', 'instructions': 'AVX512', 'gpu': None},
    'NVIDIA H200': {'cpu': 'Xeon', 'instructions': 'AVX512', 'gpu': 'NVIDIA H200'},
}


@pytest.mark.parametrize(
    ('one', 'other'), [('AVX2', 'AVX512'), ('AMD EPYC AVX512', 'Xeon AVX512'), ('Xeon AVX512', 'NVIDIA H200')]
)
def test_a_seed_on_another_kind_of_machine_is_another_run_and_the_table_says_so(one, other):
    first, second = ({'machine': MACHINES[name]} for name in (one, other))
    mixed = [
        *(record('teacher', 0, 0.8, **first), record('student', 0, 0.5, **first), record('pkd', 0, 0.6, **first)),
        *(record('teacher', 0, 0.7, **second), record('student', 0, 0.4, **second), record('pkd', 0, 0.44, **second)),
        record('freekd', 0, 0.7, **first),
    ]
    found = summarize(records.newest(mixed), PLAN, 'val')
    assert found['pkd'].gains == pytest.approx({(0, one): 10, (0, other): 4})
    assert found['freekd'].gains == pytest.approx({(0, one): 20})
    # Of the teacher on its own machine: 80 - 50.
    assert found['freekd'].closed == pytest.approx(20 / 30)
    page = markdown(mixed, PLAN)
    assert [line for line in page.splitlines() if line.startswith('## ')] == [f'## {one}', f'## {other}']
    assert '| PKD | 1 | 60.0 | +10.0 | 33 % |' in page
    assert '| PKD | 1 | 44.0 | +4.0 | 13 % |' in page


def test_runs_of_an_older_config_do_not_count():
    old, other = record('pkd', 0, 0.9, machine={'instructions': 'AVX2'}), record('pkd', 0, 0.5, hash='new')
    assert records.newest([old, other], {('pkd', 0, 'new')}) == [other]


def test_a_row_is_of_one_config():
    old = [record(method, seed, 0.5) for method in ('student', 'pkd', 'freekd') for seed in (0, 1, 2)]
    again = record('pkd', 0, 0.6, hash='new')
    today = {('student', 0, 'h'), ('student', 1, 'h'), ('student', 2, 'h'), ('pkd', 0, 'new'), ('pkd', 1, 'new')}
    found = records.newest([*old, again], today)
    # No row of FreeKD is of today's plan, so all of its old ones stay.
    assert found == [*old[:3], *old[6:], again]
    assert summarize(found, PLAN, 'val')['pkd'].values == {(0, ''): 60}


def test_an_interval_is_that_of_the_differences():
    few = [1.0, 2.0, 4.0]
    low, high = interval(few)
    # The table of Student's t: 4.303 with two degrees of freedom.
    half = 4.303 * np.std(few, ddof=1) / 3**0.5
    assert (low, high) == pytest.approx((7 / 3 - half, 7 / 3 + half), abs=1e-3)
    assert interval([2.0, 2.0]) == (2.0, 2.0)
    many = np.random.default_rng(3).normal(2.0, 1.0, 400)
    low, high = interval(many.tolist())
    # The normal approximation, an independent reference where there are many.
    error = many.std(ddof=1) / 20
    assert low == pytest.approx(many.mean() - 1.96 * error, abs=0.02)
    assert high == pytest.approx(many.mean() + 1.96 * error, abs=0.02)


def test_images_widen_an_interval_that_the_runs_agree_on():
    gains = np.random.default_rng(0).normal(1.0, 2.0, 50)
    low, high = image_interval([lambda weights: float(weights @ gains / 50)] * 3, 50)
    # Three runs that say the same: what is left is the images' standard error.
    assert (high - low) / 2 == pytest.approx(1.96 * gains.std() / 50**0.5, rel=0.15)


@pytest.mark.parametrize('runs', [3, 6])
def test_so_many_intervals_hold_the_true_mean(runs):
    samples = np.random.default_rng(1).normal(1.0, 2.0, (1000, runs)).tolist()
    held = np.mean([low < 1.0 < high for low, high in map(interval, samples)])
    assert held == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize(
    ('values', 'expected'),
    # All of a sign: 2 of the 2 ** n signs. A sum of zero: every sign is as far.
    [([1.0, 2.0, 3.0], 0.25), ([1, 2, 3, 4, 5, 6], 2 / 64), ([1.0, -1.0], 1.0), ([3.0, -1.0], 1.0)],
)
def test_the_p_value_counts_signs(values, expected):
    assert p_value(values) == pytest.approx(expected)


def test_the_p_value_of_many_pairs_draws_signs():
    assert p_value([1.0] * 40) == 0.0
    assert p_value([1.0, -1.0] * 20) == 1.0
    few, many = [1.0, -0.5, 2.0, 0.5] * 3, [1.0, -0.5, 2.0, 0.5] * 4
    assert 0 < p_value(many) < p_value(few) < 0.1


def test_groups_are_compared_by_the_best_on_val_of_those_with_the_most_runs():
    methods = {
        name: Method(name, name, group=group, title=name)
        for name, group in (('a', 'ours'), ('b', 'ours'), ('lucky', 'ours'), ('pkd', 'spatial'))
    }
    plan = replace(PLAN, methods=methods, compare=(('ours', 'spatial'), ('pkd', 'student'), ('ours', 'none')))
    found = [
        *(record('student', seed, 0.4) for seed in (0, 1, 2)),
        *(record('a', seed, value) for seed, value in enumerate((0.5, 0.52, 0.54))),
        *(record('b', seed, 0.45) for seed in (0, 1, 2)),
        record('lucky', 0, 0.9),
        *(record('pkd', seed, value) for seed, value in enumerate((0.49, 0.5, 0.5))),
    ]
    first, second = comparisons(found, plan)
    # Two of the three had most runs, and of spatial there is one: nothing was chosen there.
    assert first == ['a (best of 2 in ours) less pkd', '3', '+2.3', '-1.5 to +6.1', '', '0.25']
    assert second[:3] == ['pkd less student alone', '3', '+9.7']
    assert 'chosen on val, reported on test' in markdown(found, plan)


def test_a_plot_is_written_if_there_is_a_result(tmp_path):
    file = tmp_path / 'toy_test.png'
    assert write_plot([record('pkd', 0, None)], PLAN, file) == []
    assert write_plot(RECORDS, PLAN, file) == [file]
    assert file.read_bytes().startswith(b'\x89PNG')


def test_a_plot_says_which_kind_of_machine_it_shows(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(table.Figure, 'savefig', lambda figure, *_, **__: shown.append(figure.axes[0].get_title()))
    lines = [record('pkd', 0, 0.5, machine=MACHINES[kind]) for kind in ('AVX2', 'Xeon AVX512')]
    write_plot([*lines, record('pkd', 1, 0.6, machine=MACHINES['Xeon AVX512'])], PLAN, tmp_path / 'toy_test.png')
    assert shown == ['toy\nXeon AVX512']


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
    assert 'error' not in records.latest(found)['', 'pkd', 0, 'h']
    with open(file, 'a') as stream:
        stream.write('\n{}\n')
    with pytest.raises(ValueError, match=r'runs.jsonl:3 should be a line of JSON'):
        records.read(file)


def test_appending_after_a_cut_line_starts_a_new_one(tmp_path):
    file = tmp_path / 'runs.jsonl'
    file.write_text('{"method": "half')
    records.append(file, record('pkd', 0, 0.5))
    assert [line['method'] for line in records.read(file)] == ['pkd']


def test_a_last_line_without_its_end_is_whole(tmp_path):
    file = tmp_path / 'runs.jsonl'
    file.write_text('{"method": "one"}\n{"method": "two"}')
    assert [line['method'] for line in records.read(file)] == ['one', 'two']
    records.append(file, record('pkd', 0, 0.5))
    assert [line['method'] for line in records.read(file)] == ['one', 'two', 'pkd']
