"""Pictures in a report: what all models predict, bands and masks, in one file."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_configs
from distill_cases import train
from html_checks import CHROMIUM, check_in_browser, check_page
from picture_cases import detector_runs

from freekd_mm.report.build import write_report

PICTURES, LABELS = 4, ('student alone', 'student, freekd')


@pytest.fixture(scope='module')
def report(tmp_path_factory: pytest.TempPathFactory, scenes_root: Path) -> Path:
    folder = tmp_path_factory.mktemp('demo')
    _, alone, kd = detector_runs(folder, scenes_root)
    return write_report([alone.work_dir, kd.work_dir], folder / 'report.html', LABELS, 'all', PICTURES)[0]


def test_the_report_holds_everything_and_needs_nothing_else(report: Path) -> None:
    words = check_page(report)
    for expected in ('PoI masks', 'box AP', '→'):
        assert expected in words
    # The teacher is that of the distilled run: no run of this page has its file.
    for label in (*LABELS, 'teacher'):
        assert words.count(f' {label} ') >= PICTURES
    assert words.count('ground truth') == PICTURES


@pytest.mark.skipif(CHROMIUM is None, reason='no Chromium on this machine')
@pytest.mark.parametrize('width', [400, 1200])
def test_the_report_fits_a_window(report: Path, tmp_path: Path, width: int) -> None:
    check_in_browser(report, width, tmp_path)


def test_segmentations_are_shown_beside_the_truth(tmp_path: Path, cityscapes_root: Path) -> None:
    config = tiny_configs.write(tmp_path / 'seg.py', tiny_configs.segmenter(cityscapes_root))
    train(config)
    (work_dir,) = tmp_path.glob('*_work')
    words = check_page(write_report([work_dir], tmp_path / 'r.html', ['student'], pictures=2)[0])
    assert words.count('ground truth') == 2
