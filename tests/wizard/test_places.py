"""What of a segmenter's head can be compared: the features that its classifier reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from torch import nn

from freekd_mm.runtime.config import build_empty, build_model, find_model, load_config
from freekd_mm.runtime.probe import ProbeError
from freekd_mm.wizard.places import find_wiring, probe_built

SIZE = (64, 64)


def probe_config(cfg, role, size):
    return probe_built(build_empty(cfg), role, size)


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
    probed = probe_config(load_config(f'mmseg::{config}'), 'student', SIZE)
    assert probed.outputs.classified == classified
    parts = [module for name, module in probed.model.named_modules() if name.startswith('decode_head.')]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in parts)


def test_a_detector_has_none(det_config: Callable[..., Path]) -> None:
    probed = probe_config(Config.fromfile(det_config(name='student', head='gfl', width=8)), 'student', SIZE)
    assert probed.outputs.classified is None


def mmseg_config(name: str) -> Config:
    return load_config(f'mmseg::{name}')


@pytest.mark.parametrize(
    ('config', 'teacher', 'student'),
    [
        # In training they return what their auxiliary heads read as well.
        ('ddrnet/ddrnet_23-slim_in1k-pre_2xb6-120k_cityscapes-1024x1024.py', 'backbone', 'backbone[1]'),
        ('pidnet/pidnet-s_2xb6-120k_1024x1024-cityscapes.py', 'backbone', 'backbone[1]'),
        ('pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py', 'backbone[-1:]', 'backbone[-1:]'),
    ],
)
def test_a_student_is_tapped_as_it_trains(config: str, teacher: str, student: str) -> None:
    if 'ddrnet' in config:
        pytest.importorskip('mmseg', '1.2')
    probed = probe_config(mmseg_config(config), 'student', SIZE)
    assert (probed.features, probed.trained) == (teacher, student)
    assert len(probed.shapes) == 1


def test_class_tokens_are_left_out() -> None:
    cfg = mmseg_config('dpt/dpt_vit-b16_8xb2-160k_ade20k-512x512.py')
    cfg.model.backbone.update(embed_dims=12, num_layers=4, num_heads=2, out_indices=(0, 1, 2, 3), img_size=64)
    cfg.model.decode_head.update(in_channels=(12,) * 4, embed_dims=12, post_process_channels=[8, 8, 8, 8], channels=8)
    probed = probe_config(cfg, 'teacher', SIZE)
    assert probed.features == 'backbone[-1:]'
    assert probed.shapes == ((12, 4, 4),)
    assert probed.vectors == 4


def test_a_model_without_neck_and_backbone_is_tapped_before_its_heads() -> None:
    probed = probe_built(Odd(), 'student', SIZE)
    assert probed.features == 'encoder'
    assert probed.shapes == ((4, 32, 32), (8, 16, 16))
    assert 'encoder.0' in probed.listing()
    assert '4x32x32' in probed.listing()


def test_a_tap_of_the_user_is_taken() -> None:
    probed = probe_built(Odd(), 'student', SIZE, 'encoder[1]')
    assert (probed.features, probed.shapes) == ('encoder[1]', ((8, 16, 16),))
    assert '4x32x32' in probe_built(Odd(), 'student', SIZE, 'encoder[1]').listing()
    with pytest.raises(ValueError, match=r"should be a module of the student, but Odd has no 'encodr'.*'encoder'"):
        probe_built(Odd(), 'student', SIZE, 'encodr')


def test_a_head_that_refuses_the_image_stops_no_feature_method() -> None:
    models = [build_empty(load_config('mmdet::ddod/ddod_r50_fpn_1x_coco.py')) for _ in range(2)]
    for model in models:
        model.bbox_head.forward = refuse
    wiring = find_wiring(*(probe_built(model, role, SIZE) for model, role in zip(models, ('student', 'teacher'))))
    assert wiring.features_s == 'neck'
    assert wiring.logits is None
    assert 'too small for the head' in wiring.why_no_logits


def test_an_image_that_the_neck_refuses_is_not_the_size(det_config: Callable[..., Path]) -> None:
    model = build_model(*find_model(Config.fromfile(det_config(name='student', head='gfl', width=8))))
    neck = model.neck.forward

    def only_large(levels: tuple[torch.Tensor, ...]) -> object:
        return neck(levels) if levels[0].shape[-1] > 8 else refuse()

    model.neck.forward = only_large
    with pytest.raises(ProbeError, match='64x64 before its taps were reached: RuntimeError: too small'):
        probe_built(model, 'student', SIZE)
    assert probe_built(model, 'student', (128, 128)).features == 'neck'


def refuse(*_: object) -> None:
    raise RuntimeError('too small for the head')


class Encoder(nn.ModuleList):
    """Gives two maps and a vector."""

    def __init__(self) -> None:
        super().__init__([nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 8, 3, 2, 1)])

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        first = self[0](x)
        second = self[1](first)
        return [first, second, second.mean((2, 3))]


class Odd(BaseModel):
    """A model with names of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.class_head = Encoder(), nn.Conv2d(8, 2, 1)

    def forward(self, inputs: torch.Tensor, data_samples: object = None, mode: str = 'tensor') -> torch.Tensor:
        return self.class_head(self.encoder(inputs)[1])


class Branches(BaseModel):
    """A model with two backbones beside each other."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.ModuleList([nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(3, 8, 3, 4, 1)])

    def forward(self, inputs: torch.Tensor, data_samples: object = None, mode: str = 'tensor') -> list[torch.Tensor]:
        return [backbone(inputs) for backbone in self.backbone]


def test_of_a_list_of_backbones_one_is_compared() -> None:
    assert probe_built(Branches(), 'student', SIZE).features == 'backbone.1'
    first = probe_built(Branches(), 'student', SIZE, 'backbone.0')
    assert [shape[0] for shape in first.shapes] == [4]
