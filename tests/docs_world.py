"""The folder in which a page's code runs: the repository's tools and configs, and the files that a reader has.

Everything is tiny and generated: two detectors and two segmenters with a checkpoint each, on eight pictures.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tiny_configs
import torch
from docs_pages import ROOT
from mmengine.config import Config, ConfigDict
from mmengine.registry import HOOKS

from freekd_mm.engine.training import reliability_hooks
from freekd_mm.prompts.prompt_file import PromptFile, save_prompt
from freekd_mm.registry import MODELS
from freekd_mm.runtime.config import build_model, default_scope, find_model, without_pretrained
from freekd_mm.runtime.teacher import named_teachers

LINKS = ('tools', 'configs', 'speed', 'tests', 'docs', 'requirements', 'freekd_mm', 'Makefile')
#: The shape of COCO's detectors, so that 256 channels and five levels in the pages are right.
DETECTOR: dict[str, Any] = {'channels': 256, 'levels': 5}
COCO_CLASSES = 80


def _detector(root: Path, **options: Any) -> dict[str, Any]:
    return tiny_configs.detector(root, **{**DETECTOR, **options})


def _segmenter(root: Path, **options: Any) -> dict[str, Any]:
    # As mmseg's schedules have it.
    hooks = {'checkpoint': {'type': 'CheckpointHook', 'by_epoch': False, 'interval': 2}}
    return {**tiny_configs.segmenter(root, **options), 'default_hooks': hooks}


#: Configs that the reader has, by name.
CONFIGS: dict[str, Callable[[Path], dict[str, Any]]] = {
    'student.py': _detector,
    'teacher.py': functools.partial(_detector, width=16),
    'my_detector.py': functools.partial(_detector, head='gfl', channels=16, levels=3),
    'big_detector.py': functools.partial(_detector, head='gfl', width=16, channels=24, levels=4),
    'my_segmenter.py': _segmenter,
    'big_segmenter.py': functools.partial(_segmenter, width=16),
}
#: Checkpoints that the reader has, by the config that they belong to.
CHECKPOINTS = {
    'teacher.pth': 'teacher.py',
    'my_old_model.pth': 'teacher.py',
    'big_detector.pth': 'big_detector.py',
    'big_segmenter.pth': 'big_segmenter.py',
}
#: Checkpoints that are only named.
NAMED = ('alone/epoch_1.pth', 'wavelet/epoch_1.pth')
#: A small encoder where the pages name one of the hub.
DINOV2 = (
    '{"model_type": "dinov2", "hidden_size": 16, "num_hidden_layers": 12, "num_attention_heads": 2, "patch_size": 14}'
)
#: Pages that continue from the distillation config of another page.
WITH_KD_CONFIG = ('docs/reliability.md', 'docs/many-gpus.md', 'docs/choosing-weights.md', 'docs/faq.md')
KD_CONFIG = """
_base_ = ['student.py']
model = dict(
    _delete_=True,
    type='freekd_mm.DistilledModel',
    architecture={{_base_.model}},
    teacher=dict(cfg_path='teacher.py', checkpoint='teacher.pth'),
    distill=dict(wavelet=dict(loss=dict(type='freekd_mm.WaveletLoss', channels=256))),
)
"""


def make_given(folder: Path, scenes: Path) -> Path:
    """Writes all files that the reader has; returns the folder."""
    folder.mkdir()
    for name, config in CONFIGS.items():
        (folder / name).write_text(tiny_configs.source(config(scenes)))
    for name, config_name in CHECKPOINTS.items():
        model = build_model(*find_model(Config.fromfile(folder / config_name)))
        torch.save({'meta': {}, 'state_dict': model.state_dict()}, folder / name)
    tokens = {f'mask_modules.{level}.mask_token': torch.randn(4, 2, 256) for level in range(5)}
    torch.save(tokens, folder / 'released_prompt.pth')
    for name in NAMED:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    shutil.copytree(scenes / 'val2017', folder / 'pictures')
    (folder / 'dinov2').mkdir()
    (folder / 'dinov2/config.json').write_text(DINOV2)
    return folder


def make_world(folder: Path, given: Path, page: str = '') -> Path:
    """Makes the folder of one page."""
    shutil.copytree(given, folder)
    if page in WITH_KD_CONFIG:
        (folder / 'my_kd.py').write_text(KD_CONFIG)
    for name in LINKS:
        (folder / name).symlink_to(ROOT / name)
    return folder


def check_config_file(path: Path) -> None:
    """Loads a config of a page and builds what it distils; teachers from the net are random here."""
    cfg = Config.fromfile(path)
    for hook in cfg.get('custom_hooks') or ():
        HOOKS.build(hook)
    reliability_hooks(cfg)
    if not str(cfg.model.get('type', '')).endswith('DistilledModel'):
        cfg.model.pop('teacher_ckpt', None)  # mmrazor's
        build_model(without_pretrained(cfg.model), cfg.get('default_scope'))
        return
    model = ConfigDict(without_pretrained(cfg.model))
    for teacher in named_teachers(model.teacher).values():
        if str(teacher.get('checkpoint', '')).startswith('http'):
            del teacher['checkpoint']
            teacher.allow_random = True
        if 'transformers' in teacher:
            teacher.update({'transformers': str(path.with_name('dinov2')), 'allow_random': True})
    with _prompts(model.distill), default_scope(cfg.get('default_scope')):
        MODELS.build(model)


def check_fragment(names: dict[str, Any]) -> None:
    """Builds the parts of a config that a block without ``_base_`` has set."""
    for hook in names.get('custom_hooks', ()):
        HOOKS.build(ConfigDict(hook))
    if 'reliability' in names:
        reliability_hooks(Config({'reliability': names['reliability']}))
    if 'distill' in names:
        distill = ConfigDict(names['distill'])
        # LD compares distributions over the edges of boxes, which RetinaNet does not predict.
        head = 'gfl' if 'LDLoss' in str(distill) else 'retina'
        student, teacher = (_detector(Path(), width=width, head=head)['model'] for width in (8, 16))
        for model in (student, teacher):
            model['bbox_head']['num_classes'] = COCO_CLASSES
        with _prompts(distill), default_scope('mmdet'):
            MODELS.build(
                ConfigDict(
                    type='freekd_mm.DistilledModel',
                    architecture=student,
                    teacher={'model': teacher, 'allow_random': True},
                    distill=distill,
                )
            )


@contextmanager
def _prompts(distill: ConfigDict) -> Iterator[None]:
    """Puts random prompts where stage 1 would have left them, and in place of those from the net, for a while."""
    made = []
    for entry in distill.values():
        loss = entry.loss
        holder = loss.prompt if isinstance(loss.get('prompt'), dict) else loss
        file = holder.get('prompt')
        if file is None or Path(file).exists():
            continue
        if file.startswith('http'):
            file = holder.prompt = 'prompt_from_the_net.pth'
        levels = 5 if entry.get('student', 'neck').startswith('neck') else 1
        tokens = (4, 6 if loss.get('mode') == 'code' else 2, loss.channels)
        prompt = PromptFile({f'neck[{level}]': torch.randn(tokens) for level in range(levels)}, num_tokens=tokens[1])
        made.append(save_prompt(prompt, file))
    yield
    for path in made:
        path.unlink()
