"""mmrazor is needed where a config names one of its parts, and nowhere else."""

from __future__ import annotations

import subprocess
import sys

import tiny_configs
from distill_cases import distilled

CODE = """
import sys
sys.modules['mmrazor'] = None  # an import of it fails
from mmengine.config import Config
from freekd_mm.engine.training import run
run(Config.fromfile('kd.py'))
"""


def test_a_training_without_it(scenes_root, tmp_path):
    """A detector with a wired projection, a connector and a loss of ours, and what tools/train.py adds."""
    teacher = {**tiny_configs.detector(scenes_root, width=16, channels=24)['model'], '_scope_': 'mmdet'}
    fam = {'type': 'freekd_mm.FAMConnector', 'in_channels': 16, 'out_channels': 24, 'num_levels': 3, 'rank': 2}
    entries = {
        'wavelet': {'student': 'neck', 'loss': {'type': 'freekd_mm.WaveletLoss', 'channels': 24}},
        'fam': {'student': 'neck', 'connector': fam, 'loss': {'type': 'freekd_mm.FeatureMSELoss'}},
    }
    config = distilled(tiny_configs.detector(scenes_root), {'model': teacher, 'allow_random': True}, entries)
    config['default_hooks'] = {'logger': {'type': 'LoggerHook', 'interval': 1}}
    tiny_configs.write(tmp_path / 'kd.py', config)
    command = [sys.executable, '-c', CODE]
    answer = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert answer.returncode == 0, answer.stderr
    assert 'distill.loss_wavelet' in answer.stdout
    assert 'distill.loss_fam' in answer.stdout
