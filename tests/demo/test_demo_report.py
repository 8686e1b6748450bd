"""The demo's report on tiny runs: the table, pictures of all models, bands and masks, curves, in one file."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_configs
from distill_cases import save_weights
from html_checks import CHROMIUM, check_in_browser, check_page
from picture_cases import detector_runs

from freekd_mm.compat.versions import zip_equal
from freekd_mm.demo.demo_page import PREDICTED, Model, write_demo_report
from freekd_mm.demo.tasks import TASKS

HEADER, ROWS = ['model', 'AP'], [['teacher', '12.3'], ['student alone', '4.5']]
LABELS = ('teacher', 'student alone', 'student, freekd')


@pytest.fixture(scope='module')
def report(tmp_path_factory: pytest.TempPathFactory, scenes_root: Path) -> Path:
    folder = tmp_path_factory.mktemp('demo')
    runs = detector_runs(folder, scenes_root)
    models = [Model(label, r.config, r.work_dir, r.checkpoint) for label, r in zip_equal(LABELS, runs)]
    return write_demo_report(folder / 'report.html', TASKS['det'], models, HEADER, ROWS)


def test_the_report_holds_everything_and_needs_nothing_else(report: Path) -> None:
    words = check_page(report)
    for expected in ('toy data set', '12.3', TASKS['det'].on_real_data, 'difference after', 'PoI masks', 'box AP'):
        assert expected in words
    for label in LABELS:
        assert label in words
    assert words.count('ground truth, ') == PREDICTED
    # The teacher's folder of this test has no logs.
    assert 'should hold <timestamp>/vis_data' in words


@pytest.mark.skipif(CHROMIUM is None, reason='no Chromium here')
@pytest.mark.parametrize('width', [400, 1200])
def test_the_report_fits_a_window(report: Path, tmp_path: Path, width: int) -> None:
    check_in_browser(report, width, tmp_path)


def test_segmentations_are_shown_beside_the_truth(tmp_path: Path, cityscapes_root: Path) -> None:
    config = tiny_configs.segmenter(cityscapes_root)
    weights = save_weights(config['model'], tmp_path / 'seg.pth', 'mmseg')
    (tmp_path / 'work').mkdir()
    model = Model('student', tiny_configs.write(tmp_path / 'seg.py', config), tmp_path / 'work', weights)
    words = check_page(write_demo_report(tmp_path / 'r.html', TASKS['seg'], [model, model], HEADER, ROWS))
    assert words.count('ground truth') == PREDICTED
    assert 'striped_ball' in words
