"""The report as a page: everything in one file, names escaped, nothing outside of the window."""

from __future__ import annotations

import math
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from html_checks import CHROMIUM, check_in_browser, check_page
from test_report_runs import ap, step, write_session

from freekd_mm.pages.page import MOST_POINTS, Line, line_chart, thin
from freekd_mm.report.build import write_report

REPO = Path(__file__).parents[2]


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """A plain and a distilled run with all that is logged, and names that are hard to show."""
    plain = [
        row
        for epoch in range(1, 5)
        for row in (
            {**step(10 * epoch, epoch, loss=9 / epoch, loss_cls=5 / epoch, grad_norm=3.0), 'lr': 0.0025 * epoch},
            ap(epoch / 10, epoch),
        )
    ]
    terms = {f'distill.kd.level{level}/{band}': 0.5 + level for level in range(3) for band in ('low', 'high')}
    distilled = [{**row, 'distill.loss_kd': 2.0, **terms} if 'loss' in row else row for row in plain]
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
    for expected in ('<img src=x>', 'box AP', '40.00', 'loss_cls', 'kd: low band', 'kd: high bands', 'level 2', '0.2'):
        assert expected in words
    assert 'optim_wrapper.optimizer.lr' in words


def test_names_of_files_and_settings_break_between_their_parts(runs: list[Path], tmp_path: Path) -> None:
    html = write_report(runs, tmp_path / 'report.html')[0].read_text()
    assert '/<wbr>vis_<wbr>data/<wbr>' in html
    assert 'optim_<wbr>wrapper.<wbr>optimizer.lr' in html
    assert '&lt;wbr' not in html


def test_each_run_has_one_colour_in_all_charts(runs: list[Path], tmp_path: Path) -> None:
    html = write_report(runs, tmp_path / 'report.html', names=['plain', 'kd'])[0].read_text()
    charts = re.findall(r'(?s)<figure class="chart".*?</figure>', html)
    of_kd = [chart for chart in charts if re.match(r'[^>]* of kd"', chart)]
    of_both = [chart for chart in charts if re.match(r'[^>]* of plain, kd"', chart)]
    assert of_kd
    assert of_both
    assert all('stroke: var(--c1)' in chart and 'stroke: var(--c0)' not in chart for chart in of_kd)
    assert all(chart.index('stroke: var(--c0)') < chart.index('stroke: var(--c1)') for chart in of_both)
    assert all('<line style="stroke: var(--c1)"' in chart for chart in of_kd)


@pytest.mark.skipif(CHROMIUM is None, reason='no Chromium on this machine')
@pytest.mark.parametrize('width', [400, 1200])
def test_the_report_fits_a_window(runs: list[Path], tmp_path: Path, width: int) -> None:
    check_in_browser(write_report(runs, tmp_path / 'report.html')[0], width, tmp_path)


def test_the_tool_says_what_it_left_out_and_fails_without_any_run(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def tool(*folders: Path) -> int | str | None:
        monkeypatch.setattr(sys, 'argv', ['report.py', *map(str, folders), '--out', str(tmp_path / 'r.html')])
        try:
            runpy.run_path(str(REPO / 'tools/report.py'), run_name='__main__')
        except SystemExit as ended:
            return ended.code
        return 0

    (tmp_path / 'nothing').mkdir()
    assert tool(runs[0], tmp_path / 'nothing') == 0
    assert 'left out: nothing: should hold' in capsys.readouterr().err
    assert 'left out: nothing' in check_page(tmp_path / 'r.html')
    assert tool(tmp_path / 'nothing') == 2
    assert capsys.readouterr().err.startswith('error: nothing: should hold')


def curve(chart: str) -> np.ndarray:
    """The pixels (N, 2) of the only curve of a chart."""
    (path,) = re.findall(r'<path d="([^"]*)"[^>]*stroke: var\(--c0\)[^>]*/>', re.sub('<defs>.*?</defs>', '', chart))
    return np.array(re.sub('[ML]', '', path).split(), float).reshape(-1, 2)


def test_a_spike_does_not_press_a_curve_flat() -> None:
    calm = [(step, 1 + 0.1 * math.sin(step)) for step in range(100)]
    chart = line_chart('loss', [Line('run', [(-1, 1e6), *calm])], 'iteration', 'loss')
    assert 'cut off above 1.4' in chart
    assert np.ptp(curve(chart)[1:, 1]) > 10


def test_a_chart_has_the_letters_and_colours_of_the_page() -> None:
    chart = line_chart('t', [Line('a', [(1, 1.0), (2, 2.0)]), Line('b', [(1, 2.0)], 9)], 'iteration', 'loss & more')
    assert '>loss &amp; more</text>' in chart
    assert 'system-ui' in chart
    assert '#' not in re.sub(r'(id="|href="#|url\(#)\w+', '', chart)
    assert '<line style="stroke: var(--c1)" stroke-dasharray="7 4"' in chart


def test_long_curves_are_averaged_and_values_that_are_not_finite_are_left_out() -> None:
    points = thin([(float(x), float(x % 2)) for x in range(100 * MOST_POINTS)])
    assert len(points) <= MOST_POINTS
    assert points[:, 1] == pytest.approx(0.5)
    chart = line_chart('t', [Line('run', [(1, 1.0), (2, math.nan), (3, math.inf), (4, 2.0)])], 'x', 'y')
    assert len(curve(chart)) == 2
    assert line_chart('t', [Line('run', [(1, math.nan)])], 'x', 'y') == ''
