"""tools/visualize.py: PNG files or a page, before and after, and what it says to wrong input."""

from __future__ import annotations

import base64
import re
import runpy
import sys
from pathlib import Path
from typing import Callable

import cv2
import numpy as np
import pytest
import torch
from html_checks import CHROMIUM, check_in_browser, check_page
from picture_cases import LEVELS, TinyRun, detector_runs

from freekd_mm.checkpoints.loading import load_checkpoint_file
from freekd_mm.runtime.model import student_state_dict

REPO = Path(__file__).parents[2]
Tool = Callable[..., int]


@pytest.fixture(scope='module')
def runs(tmp_path_factory: pytest.TempPathFactory, scenes_root: Path) -> tuple[TinyRun, TinyRun, TinyRun]:
    return detector_runs(tmp_path_factory.mktemp('runs'), scenes_root)


@pytest.fixture
def image(scenes_root: Path) -> Path:
    return sorted((scenes_root / 'val2017').iterdir())[0]


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> Tool:
    def run(*words: object) -> int:
        monkeypatch.setattr(sys, 'argv', ['visualize.py', *map(str, words)])
        try:
            runpy.run_path(str(REPO / 'tools/visualize.py'), run_name='__main__')
        except SystemExit as ended:
            return ended.code  # type: ignore[return-value]
        return 0

    return run


def test_a_page_has_a_picture_of_each_kind(
    tool: Tool, runs: tuple[TinyRun, ...], image: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    page = tmp_path / 'page.html'
    assert tool(runs[2].config, runs[2].checkpoint, image, '--out', page) == 0
    said = capsys.readouterr().out
    assert "the weight of the prompt of 'freekd':" in said
    assert said.count('details 2') >= LEVELS, 'the spread of each band'
    found = re.findall('<img alt="(.*?)[ ,:].*?" src="data:image/(.*?);base64,(.*?)"', page.read_text(), re.DOTALL)
    assert [name for name, *_ in found] == ['the', 'Wavelet', 'PoI', 'Relation']
    bands = np.frombuffer(base64.b64decode(found[1][2]), np.uint8)
    assert cv2.imdecode(bands, cv2.IMREAD_COLOR).shape[0] > LEVELS * 256


def test_a_folder_gets_a_file_per_kind_of_picture(
    tool: Tool, runs: tuple[TinyRun, ...], image: Path, tmp_path: Path
) -> None:
    assert tool(runs[2].config, runs[2].checkpoint, image, '--out', tmp_path / 'out') == 0
    written = sorted(path.name for path in (tmp_path / 'out').iterdir())
    assert written == [f'{image.stem}_freekd_{kind}.png' for kind in ('bands', 'masks', 'weights')]
    assert cv2.imread(str(tmp_path / 'out' / written[0])).shape[0] > LEVELS * 256


def test_pictures_of_one_name_have_files_of_their_own(
    tool: Tool, runs: tuple[TinyRun, ...], image: Path, tmp_path: Path
) -> None:
    other = tmp_path / 'other' / image.name
    other.parent.mkdir()
    other.write_bytes(image.read_bytes())
    assert tool(runs[2].config, runs[2].checkpoint, image, other, '--out', tmp_path / 'out') == 0
    written = {path.name for path in (tmp_path / 'out').iterdir()}
    kinds = ('bands', 'masks', 'weights')
    assert written == {f'{folder}_{image.stem}_freekd_{kind}.png' for folder in ('val2017', 'other') for kind in kinds}


def test_a_page_compares_before_and_after(tool: Tool, runs: tuple[TinyRun, ...], image: Path, tmp_path: Path) -> None:
    page = tmp_path / 'page.html'
    assert tool(runs[2].config, runs[2].checkpoint, image, '--before', '--out', page) == 0
    words = check_page(page)
    pairs = re.findall('>([^<> ]+) → ([^<> ]+)<', page.read_text())
    assert len(pairs) == 7 * LEVELS
    assert any(then != now for then, now in pairs)
    assert image.name in words
    if CHROMIUM is not None:
        check_in_browser(page, 400, tmp_path)
        check_in_browser(page, 1200, tmp_path)


def test_wrong_input_is_named(
    tool: Tool, runs: tuple[TinyRun, ...], image: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    teacher, alone, kd = runs
    exported, notes = tmp_path / 'student.pth', tmp_path / 'notes.png'
    notes.write_text('no picture')
    torch.save({'state_dict': student_state_dict(load_checkpoint_file(kd.checkpoint)['state_dict'])}, exported)
    cases = {
        (alone.config, alone.checkpoint, image): 'should be a distillation config',
        (kd.config, exported, image): 'should fit DistilledRetinaNet, but only ',
        (kd.config, teacher.checkpoint, image): 'other shape: backbone.conv1.weight',
        (kd.config, kd.checkpoint, tmp_path / 'none.png'): 'an image should be an existing file',
        (kd.config, kd.checkpoint, notes): 'an image should be a picture that can be read, but',
        (kd.config, str(kd.checkpoint)[:-1], image): "Did you mean 'epoch_1.pth'?",
    }
    for words, message in cases.items():
        assert tool(*words, '--out', tmp_path / 'out') == 2, words
        error = capsys.readouterr().err
        assert error.startswith('error: ')
        assert message in error
