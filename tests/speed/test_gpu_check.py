"""What can be checked of `make gpu-check` without a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch_versions import newer_torch

from freekd_mm.losses import FeatureMSELoss
from speed import gpu_check, gpu_steps
from speed.accelerator import available
from speed.launches import has_triton
from speed.timing import Options

pytestmark = newer_torch('autocast to float16 on the CPU')

ROOT = Path(__file__).resolve().parents[2]
QUICK = Options(torch.device('cpu'), rounds=1, quick=True)
BLOCKED = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('mmcv', 'mmdet', 'mmseg', 'mmrazor', 'ptwt', 'pytorch_wavelets'):
            raise ModuleNotFoundError(f'No module named {name!r}', name=name)

sys.meta_path.insert(0, Blocker())
from speed.gpu_check import main
sys.exit(main())
"""


def run(command, folder):
    paths = os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])
    env = {**os.environ, 'TRITON_INTERPRET': '1', 'OMP_NUM_THREADS': '1', 'PYTHONPATH': paths}
    return subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, check=False)


def test_layer_1_runs_with_torch_triton_and_mmengine_alone(tmp_path):
    """Takes some seconds: all losses and the Triton kernels, in Triton's interpreter."""
    out = tmp_path / 'block.md'
    command = [sys.executable, '-c', BLOCKED, '--device', 'cpu', '--quick', '--layer', '1', '--out', str(out)]
    done = run(command, tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    text = out.read_text(encoding='utf-8')
    assert text.startswith('## Dry run on a CPU: no figures to quote')
    for title in ('Kernels and traffic', 'Values and gradients', 'Times and memory'):
        assert f'| {title} | ok |' in text
    assert ('Not counted: ' in text) is not available()
    assert '| Check at the first step | skipped: ' in text
    assert text.count('\n| WaveletLoss, Triton |') == 3 * has_triton()


def test_layer_2_without_mmcv_says_so(tmp_path):
    command = [sys.executable, '-c', BLOCKED, '--device', 'cpu', '--quick', '--layer', '2']
    done = run(command, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    for title in gpu_check.LAYERS['2']:
        assert f"| {title} | skipped: mmcv is not here: No module named 'mmcv' |" in done.stdout


def test_layer_2_takes_steps(monkeypatch):
    """The models and the losses of the real check, thin ones; operators that do not run are a reason to skip."""
    (report,) = gpu_check.run({'Steps': gpu_steps.steps}, QUICK, 60)
    assert report.blocks[-1] == 'Outcome: ok'
    assert {record['what'].partition(',')[0] for record in report.records} >= {'plain student', 'WaveletLoss'}
    assert any(block.endswith('their first use: not used.') for block in report.blocks) is has_triton()
    monkeypatch.setattr('mmcv.ops.nms', lambda *_: 1 / 0)
    (report,) = gpu_check.run({'Steps': gpu_steps.steps}, QUICK, 60)
    assert report.blocks == [
        'Outcome: skipped: the operators of mmcv do not run on cpu: division by zero',
    ]


def test_a_wrong_loss_is_found(monkeypatch):
    class Wrong(FeatureMSELoss):
        def forward(self, students, teachers):
            return super().forward(students, teachers) * (2 if students[0].dtype == torch.float32 else 1)

    monkeypatch.setattr(gpu_check, 'all_losses', lambda options: {'WaveletLoss': Wrong()})
    (report,) = gpu_check.run({'Values': gpu_check.correctness}, QUICK, 60)
    assert report.blocks[-1].startswith('Outcome: FAILED: ValueError: WaveletLoss, torch.float32: 1e+00 / ')
    assert 'by its formula' in report.blocks[-1]


def test_a_part_that_fails_or_is_skipped_says_why_and_the_next_one_runs():
    def skips(report, options):
        raise gpu_check.SkippedError('there is one card')

    def fails(report, options):
        raise RuntimeError('no\nmemory')

    def works(report, options):
        report.table(['', 'ms'], [['copy', 1]])

    reports = [*gpu_check.run({'A': skips, 'B': fails, 'C': works}, QUICK, 60)]
    reports += gpu_check.run({'D': works}, QUICK, -1 - time.monotonic())
    text = gpu_check.text(reports, QUICK)
    for row in ('A | skipped: there is one card', 'B | FAILED: RuntimeError: no memory', 'C | ok'):
        assert f'| {row} |' in text
    assert '| D | skipped: the ' in text
    assert text.count('### ') == 1


def test_status_is_1_if_a_part_fails(monkeypatch, capsys):
    monkeypatch.setenv('TRITON_INTERPRET', '1')
    monkeypatch.setattr(gpu_check, 'LAYERS', {'1': {'A part': lambda *_: 1 / 0}})
    assert gpu_check.main(['--device', 'cpu', '--quick']) == 1
    assert 'A part: FAILED: ZeroDivisionError' in capsys.readouterr().err


def test_what_is_measured_is_kept_when_the_machine_goes(monkeypatch, tmp_path, capsys):
    def works(report, options):
        report.table(['', 'ms'], [['copy', 17]])

    def killed(report, options):
        raise KeyboardInterrupt

    monkeypatch.setenv('TRITON_INTERPRET', '1')
    monkeypatch.setattr(gpu_check, 'LAYERS', {'1': {'A': works, 'B': killed}})
    with pytest.raises(KeyboardInterrupt):
        gpu_check.main(['--device', 'cpu', '--quick', '--out', str(tmp_path / 'block.md')])
    assert '| copy | 17 |' in (tmp_path / 'block.md').read_text(encoding='utf-8')
    assert '| copy | 17 |' in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_without_a_gpu_it_says_what_can_be_run(capsys):
    with pytest.raises(SystemExit):
        gpu_check.main([])
    assert 'PyTorch sees no GPU here. A dry run without one: --device cpu --quick' in capsys.readouterr().err
