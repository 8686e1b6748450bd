"""Teachers of other libraries: their maps are those that the library gives; frozen, normalised, loaded as data."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import tiny_configs
import torch
from distill_cases import CWD, build, det_samples, distilled, images, total
from torch import nn

from freekd_mm.checkpoints.fitting import WeightsMismatchError
from freekd_mm.checkpoints.loading import UntrustedCheckpointError
from freekd_mm.runtime.foreign import patch_map
from freekd_mm.runtime.teacher import build_teacher, teacher_options

STUDENT = tiny_configs.detector(Path('.'))['model']


class Pyramid(nn.Module):
    """A user's own model: a map, tokens of it with a class token in front, and a vector."""

    def __init__(self, width=6, kind='map'):
        super().__init__()
        self.conv, self.kind = nn.Conv2d(3, width, 8, stride=8), kind

    def forward(self, x):
        x = self.conv(x)
        tokens = x.flatten(2).transpose(1, 2)
        kinds = {'map': [x, x * 2], 'tokens': torch.cat([tokens[:, :1], tokens], 1), 'vector': x.mean((2, 3))}
        return kinds[self.kind]


def student(teacher, tap='neck[0]', **options):
    distill = {'kd': {'student': tap, 'teacher': 'backbone', 'loss': CWD}}
    return build(distilled({'model': STUDENT}, teacher, distill, **options)['model'])


def module(**options):
    return {'module': 'test_foreign:Pyramid', 'allow_random': True, **options}


def features(teacher, inputs):
    return build_teacher(teacher)[0].eval().extract_feat(inputs)


# A module by its import path.


@pytest.mark.parametrize(('kind', 'options'), [('map', {'blocks': [-1]}), ('tokens', {}), ('tokens', {'patch': 8})])
def test_module_teaches(kind, options):
    model = student(module(kwargs={'kind': kind}, **options))
    losses = model.loss(images(), det_samples())
    total(losses).backward()
    assert losses['distill.loss_kd'] > 0
    assert model.backbone.conv1.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in model.teacher.parameters())
    assert not [key for key in model.state_dict() if 'conv.weight' in key and 'Pyramid' in key]


def test_module_with_a_checkpoint(tmp_path):
    torch.manual_seed(3)
    own = Pyramid()
    torch.save(own.state_dict(), tmp_path / 'own.pth')
    teacher = module(checkpoint=str(tmp_path / 'own.pth'), allow_random=False)
    x = images()
    assert all(torch.equal(a, b) for a, b in zip(features(teacher, x), own(x)))
    torch.save({'state_dict': Path}, tmp_path / 'evil.pth')
    with pytest.raises(UntrustedCheckpointError, match=r'evil\.pth should hold tensors and plain data only, but'):
        build_teacher({**teacher, 'checkpoint': str(tmp_path / 'evil.pth')})


def test_normalisation_is_its_own():
    """The student's images are given back in the teacher's colours and scale."""
    half = {'mean': [0.0, 0.0, 0.0], 'std': [255.0, 255.0, 255.0]}
    bridge = student(module(**half, blocks=[0])).distillation.teacher.bridge
    picture = torch.rand(1, 3, 8, 8) * 255
    mean, std = (torch.tensor(tiny_configs.MEAN_STD[key]).view(3, 1, 1) for key in ('mean', 'std'))
    assert torch.allclose(bridge((picture - mean) / std), picture / 255, atol=1e-6)
    assert student(module(blocks=[0])).distillation.teacher.bridge is None


@pytest.mark.parametrize(
    ('teacher', 'message'),
    [
        (module(module='test_foreign.Pyramid'), "like 'package.module:Class', but got 'test_foreign.Pyramid'"),
        (module(module='test_foreign:Piramid'), "test_foreign has no 'Piramid'. Did you mean 'Pyramid'?"),
        (module(allow_random=False), "test_foreign:Pyramid should have a 'checkpoint', but got none"),
        (module(size=(65, 64), patch=8), 'a multiple of its patch, 8, but got (65, 64)'),
        (module(size=64), 'size of the teacher should be (height, width), but got 64'),
        (module(patch=0), 'patch of the teacher should be greater than 0, but got 0'),
        (module(module='test_foregn:Pyramid'), "should be importable, but 'test_foregn' is not: install it, or put"),
        (module(blocks=1), 'blocks of the teacher should be a list of 0 to 1, or from the end, but got 1'),
        (module(block=[1]), "patch, mean, std. Did you mean 'blocks'?"),
        (module(module='torch:zeros', kwargs={'size': (1,)}), 'make an nn.Module, but torch:zeros made a Tensor'),
        (module(blocks=[2]), 'blocks of the teacher should be a list of 0 to 1, or from the end, but got [2]'),
        (
            module(kwargs={'kind': 'vector'}),
            "the teacher's 6 should both be maps or both be vectors; tap a module before its pooling",
        ),
    ],
)
def test_bad_module(teacher, message):
    with pytest.raises((ValueError, TypeError, RuntimeError), match=re.escape(message)):
        student(teacher)


@pytest.mark.parametrize('extra', [0, 1, 5])
def test_patch_map(extra):
    grid = torch.arange(24.0).view(1, 2, 4, 3).permute(0, 3, 1, 2)
    tokens = torch.cat([torch.full((1, extra, 3), -1.0), grid.flatten(2).transpose(1, 2)], 1)
    assert torch.equal(patch_map(tokens, 2, 4), grid)
    assert patch_map(grid, 2, 4) is grid
    with pytest.raises(
        ValueError, match='should give 4x4 patch tokens and at most 16 before them, but gives 8; set its patch'
    ):
        patch_map(grid.flatten(2).transpose(1, 2), 4, 4)


def test_a_wrong_patch():
    model = build_teacher(module(kwargs={'kind': 'tokens'}, patch=11))[0]
    message = 'should give 6x6 patch tokens and at most 16 before them, but gives 65; set its patch'
    with pytest.raises(ValueError, match=message):
        model.extract_feat(images(1, (64, 64)))


# transformers.


@pytest.fixture(scope='module')
def transformers():
    return pytest.importorskip('transformers', reason='transformers is not installed')


@pytest.fixture(scope='module')
def folder(transformers, tmp_path_factory):
    """A folder as the hub has it: DINOv2 with registers if they are known, random weights, and an odd normalisation."""
    shape = {'hidden_size': 16, 'num_hidden_layers': 3, 'num_attention_heads': 2, 'image_size': 56, 'patch_size': 14}
    if hasattr(transformers, 'Dinov2WithRegistersConfig'):
        config = transformers.Dinov2WithRegistersConfig(**shape, num_register_tokens=3)
    else:  # version 4.46, the last for Python 3.8
        config = transformers.Dinov2Config(**shape)
    path = tmp_path_factory.mktemp('dinov2') / 'dinov2-tiny'
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(config)
    nn.init.normal_(model.embeddings.position_embeddings)
    model.save_pretrained(path)
    (path / 'preprocessor_config.json').write_text(
        '{"image_processor_type": "BitImageProcessor", "image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.5, 0.5], '
        '"rescale_factor": 0.00392156862745098, "do_rescale": true}'
    )
    return path


def test_levels_are_those_of_the_library(transformers, folder):
    """Its own backbone class, which norms, cuts the first tokens off and reshapes, is the reference."""
    x = images(2, (70, 98))
    own = transformers.AutoBackbone.from_pretrained(folder, out_features=['stage1', 'stage2', 'stage3']).eval()
    with torch.no_grad():
        expected = own(x).feature_maps
        found = features({'transformers': str(folder), 'blocks': [0, 1, 2]}, x)
        last = features({'transformers': str(folder)}, x)
    assert [level.shape for level in found] == [(2, 16, 5, 7)] * 3
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, expected))
    assert len(last) == 1
    assert torch.equal(last[0], found[-1])


def test_transformers_teaches_a_detector(folder):
    """Pictures of 64 pixels become 70, five patches of 14, and the folder's normalisation holds."""
    model = student({'transformers': str(folder)}, probe_size=None)
    losses = model.loss(images(), det_samples())
    assert losses['distill.loss_kd'] > 0
    assert torch.allclose(
        torch.tensor(model.distillation.teacher.bridge.scale),
        torch.tensor(tiny_configs.MEAN_STD['std']) / 127.5,
        atol=1e-6,
    )
    said = build_teacher({'transformers': str(folder)})[1]
    assert said == f'its own weights ({folder}); images are resized to multiples of 14'


def test_weights_of_transformers(transformers, folder, tmp_path):
    """From the folder, from a file of either kind, or random; never from a pickle by the library itself."""
    x = images(1, (28, 28))
    own = features({'transformers': str(folder)}, x)[0]
    file = {'transformers': str(folder), 'checkpoint': str(folder / 'model.safetensors')}
    assert torch.equal(features(file, x)[0], own)
    state = transformers.AutoModel.from_pretrained(folder).state_dict()
    torch.save(state, tmp_path / 'weights.pth')
    assert torch.equal(features({**file, 'checkpoint': str(tmp_path / 'weights.pth')}, x)[0], own)
    assert not torch.equal(features({'transformers': str(folder), 'allow_random': True}, x)[0], own)
    (tmp_path / 'config.json').write_text((folder / 'config.json').read_text())
    torch.save(state, tmp_path / 'pytorch_model.bin')
    with pytest.raises(OSError, match='safetensors'):
        build_teacher({'transformers': str(tmp_path)})


def test_a_hierarchical_model(transformers, tmp_path):
    config = transformers.SwinConfig(
        image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4
    )
    config.save_pretrained(tmp_path)
    found = features({'transformers': str(tmp_path), 'allow_random': True, 'blocks': [0, 1]}, images(1, (32, 64)))
    assert [level.shape for level in found] == [(1, 16, 4, 8), (1, 16, 4, 8)]


def test_sam_takes_one_size(transformers, tmp_path):
    """Its position embedding does not change, so images are resized; its channels are last."""
    if not hasattr(transformers, 'SamVisionModel'):
        pytest.skip('this transformers has no SAM encoder alone')
    vision = {'hidden_size': 8, 'num_hidden_layers': 2, 'num_attention_heads': 2, 'output_channels': 8, 'mlp_dim': 8}
    config = transformers.SamVisionConfig(**vision, image_size=64, patch_size=16, global_attn_indexes=[1])
    config.save_pretrained(tmp_path)
    model, said = build_teacher({'transformers': str(tmp_path), 'allow_random': True, 'blocks': [0, 1]})
    x = images(1, (40, 24))
    x64 = nn.functional.interpolate(x, (64, 64), mode='bilinear', antialias=True)
    own = model.backbone.model(pixel_values=x64, output_hidden_states=True).hidden_states
    assert said == 'RANDOM weights (allow_random=True); images are resized to (64, 64)'
    for level, state in zip(model.eval().extract_feat(x), own[1:]):
        assert torch.allclose(level, state.permute(0, 3, 1, 2), atol=1e-6)


def test_incomplete_weights(transformers, folder, tmp_path):
    """The library would start what is missing at random."""
    state = transformers.AutoModel.from_pretrained(folder).state_dict()
    gone = 'encoder.layer.1.mlp.fc1.weight'
    (tmp_path / 'config.json').write_text((folder / 'config.json').read_text())
    save_file = pytest.importorskip('safetensors.torch').save_file
    del state[gone]
    save_file(state, tmp_path / 'model.safetensors', {'format': 'pt'})
    with pytest.raises(WeightsMismatchError, match=f'lacks {gone}'):
        build_teacher({'transformers': str(tmp_path)})


def test_half_of_two_models(transformers, tmp_path):
    small = {'hidden_size': 8, 'num_hidden_layers': 2, 'num_attention_heads': 2, 'intermediate_size': 16}
    config = transformers.SiglipConfig(
        text_config={**small, 'vocab_size': 20}, vision_config={**small, 'image_size': 32, 'patch_size': 8}
    )
    config.save_pretrained(tmp_path)
    (level,) = features({'transformers': str(tmp_path), 'allow_random': True}, images(1, (40, 24)))
    assert level.shape == (1, 8, 5, 3)


def test_wrong_models(transformers, folder, tmp_path):
    transformers.BertConfig(hidden_size=4, num_hidden_layers=1, num_attention_heads=1).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r'should be a model of images, but .* is a BertModel'):
        build_teacher({'transformers': str(tmp_path), 'allow_random': True})
    with pytest.raises(ValueError, match=r'blocks of the teacher should be a list of 0 to 2, .* but got \[3\]$'):
        student({'transformers': str(folder), 'blocks': [3]})


def test_unknown_name(transformers, monkeypatch, tmp_path):
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    monkeypatch.setattr('transformers.utils.hub._is_offline_mode', True)
    with pytest.raises(ValueError, match=r"but got 'facebook/dinov2-smal'\. Did you mean 'facebook/dinov2-small'"):
        build_teacher({'transformers': 'facebook/dinov2-smal'})
    code = '{"model_type": "mine", "auto_map": {"AutoConfig": "code.Mine"}}'
    (tmp_path / 'config.json').write_text(code)
    (tmp_path / 'code.py').write_text('raise SystemExit("ran")')
    with pytest.raises(ValueError, match='should be a folder or a name that transformers knows'):
        build_teacher({'transformers': str(tmp_path)})


# timm, which imports torchvision.


@pytest.fixture(scope='module')
def timm():
    try:
        import timm
    except Exception as error:
        pytest.skip(f'timm needs a torchvision that fits PyTorch, which only ENV=py311-torchvision has: {error}')
    return timm


VIT = {'embed_dim': 16, 'depth': 2, 'num_heads': 2}


@pytest.mark.parametrize(
    ('name', 'kwargs', 'shape'),
    [
        ('vit_tiny_patch16_224', {**VIT, 'reg_tokens': 3}, (1, 16, 3, 5)),
        ('swin_tiny_patch4_window7_224', {'embed_dim': 8, 'depths': (1, 1), 'num_heads': (1, 2)}, (1, 16, 6, 10)),
        ('resnet18', {'channels': (4, 8, 8, 16)}, (1, 16, 2, 3)),
    ],
)
def test_timm(timm, tmp_path, name, kwargs, shape):
    """The last map is that of the library's own forward pass, with the user's weights."""
    x = images(1, (48, 80))
    teacher = {'timm': name, 'kwargs': kwargs}
    size = {'dynamic_img_size': True} if 'vit' in name else {'strict_img_size': False} if 'swin' in name else {}
    own = timm.create_model(name, num_classes=0, **kwargs, **size).eval()
    torch.save(own.state_dict(), tmp_path / 'own.pth')
    with torch.no_grad():
        (level,) = features({**teacher, 'checkpoint': str(tmp_path / 'own.pth')}, x)
        expected = own.forward_features(x)
    if 'vit' in name:
        expected = expected[:, 4:].transpose(1, 2).reshape(shape)
    elif 'swin' in name:  # its channels are last
        expected = expected.permute(0, 3, 1, 2)
    assert level.shape == shape
    assert torch.allclose(level, expected, atol=1e-6)
    assert features({**teacher, 'allow_random': True}, x)[0].shape == shape


def test_timm_fits_the_position_embedding(timm, tmp_path):
    """Weights of another image size are interpolated by the library; blocks are levels; its normalisation holds."""
    own = timm.create_model('vit_tiny_patch16_224', img_size=64, **VIT)
    torch.save(own.state_dict(), tmp_path / 'own.pth')
    teacher = {'timm': 'vit_tiny_patch16_224', 'kwargs': VIT, 'checkpoint': str(tmp_path / 'own.pth'), 'blocks': [0, 1]}
    model, said = build_teacher(teacher)
    levels = model.extract_feat(images(1, (50, 64)))
    assert [level.shape for level in levels] == [(1, 16, 3, 4)] * 2
    assert model.data_preprocessor.mean.flatten().tolist() == [127.5] * 3
    assert said == f'{tmp_path / "own.pth"} (100% of 30 weights); images are resized to multiples of 16'


def test_unknown_timm_name(timm):
    with pytest.raises(ValueError, match=r"but got 'resnet18x'\. Did you mean 'resnet18"):
        build_teacher({'timm': 'resnet18x'})
    with pytest.raises(ValueError, match=r"Did you mean 'vit_small_patch14_dinov2\.lvd142m'"):
        build_teacher({'timm': 'vit_small_patch14_dinov2.lvd142'})


def test_unknown_library():
    message = "the colon of the teacher 'tim:resnet18' should be one of .* but got 'tim'. Did you mean 'timm'"
    with pytest.raises(ValueError, match=message):
        teacher_options('tim:resnet18')
    assert teacher_options('mmdet::a/b.py') == {'cfg_path': 'mmdet::a/b.py'}
    assert teacher_options('C:/a.py') == {'cfg_path': 'C:/a.py'}


def test_missing_library(monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'timm', None)
    with pytest.raises(
        ImportError, match='needs the package timm: pip install timm, and a torchvision that fits your PyTorch'
    ):
        student({'timm': 'resnet18'})
