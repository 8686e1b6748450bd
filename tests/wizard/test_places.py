"""What of a segmenter's head can be compared: the features that its classifier reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from mmengine.config import Config

from freekd_mm.runtime.config import load_config
from freekd_mm.wizard.places import find_classified, probe_config

SIZE = (64, 64)


@pytest.mark.parametrize(
    ('config', 'classified'),
    [
        ('pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py', 'decode_head.bottleneck'),
        ('segformer/segformer_mit-b0_8xb1-160k_cityscapes-1024x1024.py', 'decode_head.fusion_conv'),
        ('deeplabv3plus/deeplabv3plus_r18-d8_4xb2-80k_cityscapes-512x1024.py', 'decode_head.sep_bottleneck'),
        # A cascade has no single classifier.
        ('ocrnet/ocrnet_hr18s_4xb2-80k_cityscapes-512x1024.py', None),
    ],
)
def test_it_is_found_in_the_configs_of_mmseg(config: str, classified: str | None) -> None:
    model = probe_config(load_config(f'mmseg::{config}'), 'student', SIZE).model
    assert find_classified(model, SIZE) == classified
    parts = [module for name, module in model.named_modules() if name.startswith('decode_head.')]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in parts)


def test_a_detector_has_none(det_config: Callable[..., Path]) -> None:
    model = probe_config(Config.fromfile(det_config(name='student', head='gfl', width=8)), 'student', SIZE).model
    assert find_classified(model, SIZE) is None
