"""The report as a page: everything in one file, names escaped, nothing outside of the window."""

from __future__ import annotations

import math
import re
import runpy
import sys
from pathlib import Path

import pytest
from html_checks import CHROMIUM, check_in_browser, check_page
from test_report_runs import ap, step, write_session

from freekd_mm.report.build import write_report
from freekd_mm.report.charts import MOST_POINTS, WIDTH, Line, line_chart, number, thin, ticks

REPO = Path(__file__).parents[2]


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """A plain and a distilled run with all that is logged, and names that are hard to show."""
    plain = [
        row
        for epoch in range(1, 5)
        for row in (
            step(10 * epoch, epoch, loss=9 / epoch, loss_cls=5 / epoch, grad_norm=3.0) | {'lr': 0.0025 * epoch},
            ap(epoch / 10, epoch),
        )
    ]
    terms = {f'distill.kd.level{level}/{band}': 0.5 + level for level in range(3) for band in ('low', 'high')}
    distilled = [row | {'distill.loss_kd': 2.0, **terms} if 'loss' in row else row for row in plain]
    distilled[2]['loss'] = math.nan
    config = 'model = dict(type="GFL")\noptim_wrapper = dict(optimizer=dict(type="SGD", lr={lr}))\n'
    return [
        write_session(tmp_path / '<img src=x>', '1', plain, config.format(lr=0.1)),
        write_session(tmp_path / f'distilled_{"very_" * 8}long', '1', distilled, config.format(lr=0.2)),
    ]


def test_the_report_holds_all_runs_and_needs_nothing_else(runs: list[Path], tmp_path: Path) -> None:
    path, left_out = write_report(runs, tmp_path / 'report.html')
    words = check_page(path)
    assert left_out == []
    for expected in ('<img src=x>', 'box AP', '40.00', 'loss_cls', 'kd: low band', 'kd: high bands', 'level 2', 'SGD'):
        assert expected in words
    assert 'optim_wrapper.optimizer.lr' in words


def test_each_run_has_one_colour_in_all_charts(runs: list[Path], tmp_path: Path) -> None:
    html = write_report(runs, tmp_path / 'report.html', names=['plain', 'kd'])[0].read_text()
    found = set(re.findall(r'<polyline class="(s\d)" points="[^"]*"><title>(\w+)</title>', html))
    assert {style for style, name in found if name == 'plain'} == {'s0'}
    assert {style for style, name in found if name == 'kd'} == {'s1'}


@pytest.mark.skipif(CHROMIUM is None, reason='no Chromium here')
@pytest.mark.parametrize('width', [400, 1200])
def test_the_report_fits_a_window(runs: list[Path], tmp_path: Path, width: int) -> None:
    check_in_browser(write_report(runs, tmp_path / 'report.html')[0], width, tmp_path)


def test_the_tool_says_what_it_left_out_and_fails_without_any_run(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def tool(*folders: Path) -> int | str | None:
        monkeypatch.setattr(sys, 'argv', ['report.py', *map(str, folders), '--out', str(tmp_path / 'r.html')])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(REPO / 'tools/report.py'), run_name='__main__')
        return ended.value.code

    (tmp_path / 'nothing').mkdir()
    assert tool(runs[0], tmp_path / 'nothing') == 0
    assert 'left out: nothing: should hold' in capsys.readouterr().err
    assert 'left out: nothing' in check_page(tmp_path / 'r.html')
    assert tool(tmp_path / 'nothing') == 2
    assert capsys.readouterr().err.startswith('error: nothing: should hold')


def test_ticks_are_round_and_hold_the_values() -> None:
    assert ticks(0.0, 0.97) == pytest.approx([0, 0.25, 0.5, 0.75, 1])
    assert ticks(3, 41) == pytest.approx([0, 10, 20, 30, 40, 50])
    assert ticks(-2e-5, 3e-5, 3)[0] <= -2e-5


def test_numbers_are_short() -> None:
    shown = [number(value) for value in (0.0, 0.00012, 12345678.0, 0.25, 40.0, 25000.0)]
    assert shown == ['0', '1.2e-4', '1.23e7', '0.25', '40', '25000']


def test_a_spike_does_not_press_a_curve_flat() -> None:
    calm = [(step, 1 + 0.1 * math.sin(step)) for step in range(100)]
    chart = line_chart('loss', [Line('run', [(0, 1e6), *calm])], 'iteration', 'loss')
    assert 'cut off above 1.4' in chart
    heights = [float(point.split(',')[1]) for point in re.search(r'points="([^"]*)"', chart)[1].split()[1:]]
    assert max(heights) - min(heights) > 10


def test_long_curves_are_averaged_and_values_that_are_not_finite_are_left_out() -> None:
    points = thin([(float(x), float(x % 2)) for x in range(100 * MOST_POINTS)])
    assert len(points) <= MOST_POINTS
    assert {round(y, 6) for _, y in points} == {0.5}
    chart = line_chart('t', [Line('run', [(1, 1.0), (2, math.nan), (3, math.inf), (4, 2.0)])], 'x', 'y')
    assert len(re.search(r'points="([^"]*)"', chart)[1].split()) == 2
    assert line_chart('t', [Line('run', [(1, math.nan)])], 'x', 'y') == ''


def test_one_value_is_drawn_within_the_chart() -> None:
    chart = line_chart('t', [Line('run', [(5, 3.0)])], 'x', 'y', dots=True)
    x = float(re.search(r'cx="([^"]*)"', chart)[1])
    assert 0 < x < WIDTH
