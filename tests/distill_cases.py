"""What the tests of the distillation runtime share: configs turned into distilled ones, checkpoints, short runs."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import nn

from freekd_mm.runtime.config import build_model
from freekd_mm.wizard.make_config import plan_config

CWD = {'type': 'mmrazor.ChannelWiseDivergence', 'loss_weight': 1.0}
L2 = {'type': 'mmrazor.L2Loss', 'normalize': False, 'div_element': True}
NO_MMRAZOR = importlib.util.find_spec('mmrazor') is None
needs_mmrazor = pytest.mark.skipif(NO_MMRAZOR, reason='mmrazor is not installed')
if NO_MMRAZOR:
    CWD = L2 = {'type': 'mmdet.MSELoss'}  # also a loss for one tensor


def distilled(config: dict, teacher: dict | list, distill: dict, **options: Any) -> dict:
    """Returns a config whose student learns from a teacher."""
    model = {
        'type': 'freekd_mm.DistilledModel',
        'architecture': config['model'],
        'teacher': teacher,
        'distill': distill,
        'probe_size': (64, 64),
        **options,
    }
    return {**config, 'model': model}


def make_config(*given: Any, **options: Any) -> list[Path]:
    """Writes a config as ``tools/make_config.py`` does; returns the files, that of the distillation last."""
    return plan_config(*given, **options).write()


def build(model: dict, scope: str = 'mmdet') -> Any:
    """Builds a model, distilled or plain, from its config."""
    return build_model(ConfigDict(copy.deepcopy(model)), scope)


def save_weights(model: dict, path: Path, scope: str = 'mmdet', seed: int = 1) -> Path:
    """Saves the weights of a freshly initialised model."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        built = build(model, scope)
        built.init_weights()
    torch.save({'meta': {}, 'state_dict': built.state_dict()}, path)
    return path


def runner_of(path: Path, **settings: Any) -> Runner:
    """Builds the runner of a config file, ``settings`` in place of its own."""
    config = Config.fromfile(path)
    config.merge_from_dict(settings)
    # Visualizers of one name are one object in a process, which writes where the first run did.
    config.visualizer.name = config.experiment_name
    return Runner.from_cfg(config)


def train(path: Path, *hooks: Hook, **settings: Any) -> Runner:
    """Trains a config file and returns the runner."""
    runner = runner_of(path, **settings)
    for hook in hooks:
        runner.register_hook(hook, priority='LOWEST')
    runner.train()
    return runner


def student_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Returns copies of a model's weights, those of the distillation left out."""
    return {k: v.clone() for k, v in model.state_dict().items() if not k.startswith('distillation.')}


def differing(first: dict, second: dict) -> list[str]:
    """Returns the keys at which two state dicts are not the same, bit for bit."""
    keys = sorted(set(first) | set(second))
    return [key for key in keys if key not in first or key not in second or not torch.equal(first[key], second[key])]


def images(count: int = 2, size: tuple[int, int] = (64, 64), seed: int = 0) -> torch.Tensor:
    """Returns (N, 3, H, W) normalised noise."""
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(seed))


def det_samples(count: int = 2, size: tuple[int, int] = (64, 64)) -> list[Any]:
    """Returns data samples of a detector with one box each."""
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    samples = []
    for index in range(count):
        meta = {'img_shape': size, 'ori_shape': size, 'pad_shape': size, 'batch_input_shape': size, 'img_id': index}
        sample = DetDataSample(metainfo={**meta, 'scale_factor': (1.0, 1.0)})
        boxes = torch.tensor([[8.0, 8.0, 40.0, 44.0]])
        sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.tensor([index % 2]))
        sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
        samples.append(sample)
    return samples


def seg_samples(count: int = 2, size: tuple[int, int] = (64, 64)) -> list[Any]:
    """Returns data samples of a segmenter: left half class 0, right half class 1."""
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    labels = torch.zeros(1, *size, dtype=torch.long)
    labels[..., size[1] // 2 :] = 1
    samples = []
    for _ in range(count):
        meta = {'img_shape': size, 'ori_shape': size, 'pad_shape': size}
        sample = SegDataSample(metainfo=meta)
        sample.gt_sem_seg = PixelData(data=labels.clone())
        samples.append(sample)
    return samples


def total(losses: dict) -> torch.Tensor:
    """Returns the sum of all losses as mmengine adds them up."""
    from mmengine.model import BaseModel

    return BaseModel.parse_losses(None, losses)[0]


class Calls:
    """Counts how often modules run."""

    def __init__(self, model: nn.Module, *paths: str) -> None:
        self.counts = dict.fromkeys(paths, 0)
        for path in paths:
            model.get_submodule(path).register_forward_pre_hook(lambda *_, path=path: self._count(path))

    def _count(self, path: str) -> None:
        self.counts[path] += 1
