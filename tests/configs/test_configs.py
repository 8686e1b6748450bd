"""Every shipped config builds its real models and takes a real training step, on tiny pictures.

Official checkpoints cannot be had in a test: the teachers are random, which the configs are told by name, and the
prompts are made on the spot.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_configs
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from test_recipes import RECIPES

from freekd_mm.prompts.masks import num_groups
from freekd_mm.prompts.prompt_file import PromptFile, save_prompt
from freekd_mm.registry import MODELS
from freekd_mm.runtime.config import default_scope, find_model, load_config

CONFIGS = Path(__file__).parents[2] / 'configs'
METHODS = ('wavelet', 'freekd', 'famkd', 'figkd', 'dctkd', 'ld', 'crosskd', 'kl')
DISTILL = sorted(path.relative_to(CONFIGS).as_posix() for method in METHODS for path in (CONFIGS / method).glob('*.py'))
# Those of test_recipes.py take their steps there, on masks and label maps.
DISTILL = [name for name in DISTILL if Path(name).stem not in RECIPES or not name.startswith('wavelet/')]
PROMPTS = sorted(path.relative_to(CONFIGS).as_posix() for path in (CONFIGS / 'freekd/prompt').glob('*.py'))
# mmpretrain needs torchvision, which has no CPU build everywhere: these run where it imports.
NEEDS_MMPRETRAIN = ('figkd/resnet18_resnet50_mmpretrain.py', 'wavelet/encoder_r50_sam-vit-b.py')


def shrink(cfg: Config, root: Path, work_dir: Path) -> Config:
    """Puts the tiny pictures and one iteration in place of COCO or Cityscapes and the schedule."""
    segments = cfg.default_scope == 'mmseg'
    # RepPoints' deformable convolutions refuse maps smaller than their kernel.
    size = 128 if 'RepPoints' in str(cfg.model.get('architecture', cfg.model).type) else 64
    tiny = tiny_configs.segmenter(root) if segments else tiny_configs.detector(root, size=size)
    for key in ('val_dataloader', 'val_evaluator', 'val_cfg', 'test_dataloader', 'test_evaluator', 'test_cfg'):
        cfg.pop(key, None)
    cfg.train_dataloader = tiny['train_dataloader']
    cfg.train_dataloader.batch_size = 2
    cfg.train_cfg = {'type': 'IterBasedTrainLoop', 'max_iters': 1}
    cfg.default_hooks.checkpoint = None
    cfg.default_hooks.logger = {'type': 'LoggerHook', 'interval': 1}
    cfg.work_dir, cfg.load_from = str(work_dir), None
    cfg.experiment_name = work_dir.name
    model = cfg.model.architecture if 'architecture' in cfg.model else cfg.model
    drop_pretrained(model)
    if 'num_queries' in model:
        # Tiny pictures have fewer positions than a DETR has queries.
        model.num_queries = 50
    if segments:
        model.data_preprocessor.size = (64, 64)
        model.test_cfg = {'mode': 'whole'}
    return cfg


def drop_pretrained(cfg: Any) -> None:
    """Removes initial weights that would be downloaded."""
    for key, value in list(cfg.items()):
        if key == 'pretrained' or (key == 'init_cfg' and isinstance(value, dict) and value.get('type') == 'Pretrained'):
            cfg[key] = None
        elif isinstance(value, dict):
            drop_pretrained(value)


def write_prompt(cfg: Config, path: Path) -> None:
    """Writes random tokens where stage 1 of the config would leave its prompt."""
    hook = Config.fromfile(cfg.frequency_prompt.cfg_path).custom_hooks[-1]
    entry = cfg.model.distill.freekd
    channels = entry.loss.channels
    tokens = num_groups(3, 'level'), hook.get('num_tokens', 2)
    per_level = [channels] * {'neck': 5, 'backbone[-1:]': 1}[hook.modules] if isinstance(channels, int) else channels
    module = hook.modules.split('[')[0]
    levels = {f'{module}[{index}]': 0.1 * torch.randn(*tokens, count) for index, count in enumerate(per_level)}
    save_prompt(PromptFile(levels, num_tokens=tokens[1]), path)


def names_of(cfg: Any, prefix: str) -> list[str]:
    """Returns all type names in a config that start with ``prefix``."""
    found = []
    for key, value in cfg.items():
        if key == 'type' and str(value).startswith(prefix):
            found.append(value)
        elif isinstance(value, dict):
            found += names_of(value, prefix)
    return found


def train_one_step(cfg: Config) -> tuple[Runner, dict[str, float]]:
    """Runs the one iteration and returns the logged losses."""
    runner = Runner.from_cfg(cfg)
    runner.train()
    scalars = runner.message_hub.log_scalars
    return runner, {key: buffer.current() for key, buffer in scalars.items() if 'loss' in key}


@pytest.mark.parametrize('name', [name for name in DISTILL if name not in NEEDS_MMPRETRAIN])
def test_distillation_config_takes_a_step(name: str, scenes_root: Path, tmp_path: Path) -> None:
    cfg = Config.fromfile(CONFIGS / name)
    if cfg.get('frequency_prompt'):
        prompt = tmp_path / 'prompt.pth'
        write_prompt(cfg, prompt)
        freekd = cfg.model.distill.freekd.loss
        if isinstance(freekd.prompt, dict):
            freekd.prompt.prompt = str(prompt)
        else:
            freekd.prompt = str(prompt)
    work_dir = tmp_path / f'{name.replace("/", "_")}_work'
    cfg = shrink(cfg, scenes_root, work_dir)
    cfg.model.teacher.pop('checkpoint')
    cfg.model.teacher.allow_random = True
    runner, losses = train_one_step(cfg)
    for entry in cfg.model.distill:
        value = losses[f'train/distill.loss_{entry}']
        assert 0 < value < float('inf'), f'{entry}: {value}'
    student = runner.model
    assert not any(key.startswith('teacher') for key in student.state_dict())


@pytest.fixture(scope='module')
def prompted() -> list[Config]:
    """All distillation configs with a stage 1."""
    configs = [Config.fromfile(CONFIGS / name) for name in DISTILL if name not in NEEDS_MMPRETRAIN]
    return [cfg for cfg in configs if cfg.get('frequency_prompt')]


@pytest.mark.parametrize('name', PROMPTS)
def test_prompt_config_names_the_teacher_of_its_pair(name: str, prompted: list[Config]) -> None:
    """Stage 1 and stage 2 use the same teacher, checkpoint and prompt file."""
    prompt = Config.fromfile(CONFIGS / name)
    users = [cfg for cfg in prompted if Path(cfg.frequency_prompt.cfg_path).stem == Path(name).stem]
    assert users, f'no distillation config uses {name}'
    for cfg in users:
        assert cfg.model.teacher.checkpoint == prompt.load_from
        teacher, _ = find_model(load_config(cfg.model.teacher.cfg_path))
        assert teacher.backbone == prompt.model.backbone
        assert Path(cfg.frequency_prompt.file).parent == Path(prompt.work_dir)


@pytest.mark.parametrize('name', NEEDS_MMPRETRAIN)
def test_mmpretrain_config_gives_every_parameter_a_gradient(name: str) -> None:
    pytest.importorskip('mmpretrain.models', exc_type=ImportError)
    cfg = Config.fromfile(CONFIGS / name)
    drop_pretrained(cfg.model.architecture)
    cfg.model.teacher.pop('checkpoint')
    cfg.model.teacher.allow_random = True
    with default_scope(cfg.get('default_scope', 'mmpretrain')):
        model = MODELS.build(cfg.model).train()
        samples = None
        if 'figkd' in name:
            from mmpretrain.structures import DataSample

            samples = [DataSample().set_gt_label(label) for label in range(2)]
        losses = model(torch.randn(2, 3, 128, 128), samples, mode='loss')
    loss, _ = model.parse_losses(losses)
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


def test_every_config_folder_has_the_required_pairs() -> None:
    """Each sister method ships RetinaNet, RepPoints, GFL on COCO and PSPNet on Cityscapes."""
    for method in ('famkd', 'figkd', 'dctkd'):
        for pair in ('retinanet_r50', 'reppoints_r50', 'gfl_r50', 'pspnet_r18'):
            cfg = Config.fromfile(CONFIGS / method / f'{pair}.py')
            assert any(name.startswith(method) for name in cfg.model.distill)
            assert names_of(cfg.model.distill, 'freekd_mm.')
