"""Finds the model that a user names: an inline dict, a config file, or ``package::config``."""

from __future__ import annotations

import copy
import re
import sys
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from freekd_mm.checks import beside

PRETRAINED_PREFIXES = ('Pretrained', 'mmengine.Pretrained')
# How Python, mmengine's registries and the models of mmdet and mmseg say that a package is missing.
MISSING = re.compile(
    '|'.join(
        [
            r"No module named '(\w+)",
            r"custom modules from .*?'(?:imports': \[?')?(\w+)\.",
            r"""^["']?(\w+)\.\w+ is not in the""",
            r"""pip install[: ]+["']?(\w[\w-]*)""",
            r'(\w+) is not installed',
            r'Please install (\w+)',
        ]
    )
)
DISTRIBUTIONS = {
    'mmseg': 'mmsegmentation',
    'sklearn': 'scikit-learn',
    'skimage': 'scikit-image',
    'Detectron2': 'git+https://github.com/facebookresearch/detectron2.git',
    'panopticapi': 'git+https://github.com/cocodataset/panopticapi.git',
}


def load_config(path: str) -> Config:
    """Loads a config file, or a config of an installed package written as ``mmdet::dir/name.py``."""
    if '::' not in path and not Path(path).is_file():
        raise FileNotFoundError(
            "cfg_path should be a config file or like 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', but got "
            f'{path!r}{beside(Path(path))}'
        )
    try:
        return _package_config(path) if '::' in path else Config.fromfile(path)
    except ImportError as error:
        raise_if_missing(error, repr(path))
        raise


def _package_config(path: str) -> Config:
    from mmengine.hub import get_config

    package = path.split('::', 1)[0]
    __import__(package)
    try:
        cfg = get_config(path)
    except (FileNotFoundError, ValueError) as error:
        file = Path(sys.modules[package].__file__ or '').parent / '.mim/configs' / path.split('::')[1]
        why = f': {error}' if file.exists() else beside(file)
        raise FileNotFoundError(f'{path!r} should name a config of {package}, but there is none{why}') from error
    # A config without its own runtime (of an encoder, for example) still names its types in its package.
    cfg.setdefault('default_scope', package)
    return cfg


def is_distilled(model: dict) -> bool:
    """Whether a model's config is that of a distilled student; its type is a name, or an object in new configs."""
    kind = model.get('type', '')
    return str(getattr(kind, '__name__', kind)).rsplit('.', 1)[-1] == 'DistilledModel'


def find_model(source: dict | Config) -> tuple[dict, str | None]:
    """Returns the model's config and its default scope."""
    # The student of a distillation config counts as the model, so that a distilled student can be a teacher.
    if 'model' not in source:
        raise ValueError("config should define 'model', but has " + ', '.join(sorted(source)))
    model = source['model']
    if is_distilled(model):
        model = model['architecture']
    model = ConfigDict(model)
    if 'data_preprocessor' not in model and source.get('data_preprocessor'):
        model['data_preprocessor'] = source['data_preprocessor']
    return model, source.get('default_scope')


#: Builds with a scope as mmengine's default one; None leaves the present one.
default_scope = DefaultScope.overwrite_default_scope


def build_model(cfg: dict, scope: str | None = None) -> nn.Module:
    """Builds a model whose type names are looked up in ``scope``."""
    with default_scope(scope):
        try:
            return MODELS.build(copy.deepcopy(ConfigDict(cfg)))  # some models change their config while they are built
        except Exception as error:
            raise_if_missing(error, 'the model')
            raise


def build_empty(source: dict | Config) -> nn.Module:
    """Builds the model of a config, see :func:`find_model`, without weights."""
    model, scope = find_model(source)
    return build_model(without_pretrained(model), scope)


def raise_if_missing(error: Exception, what: str) -> None:
    """Raises an error of one line with the command that installs a missing package."""
    name = missing_package(str(error))
    if name and 'needs the package' not in str(error):  # ours, of a model in it
        command = f'pip install {DISTRIBUTIONS.get(name, name)}'
        if name in ('torchvision', 'timm'):
            # pip would bring the torchvision of another PyTorch, and that PyTorch with it.
            command = 'docs/install.md says how (in a clone: make setup ENV=py311-torchvision)'
        raise ImportError(f'{what} needs the package {name}, which is not installed: {command}') from error


def missing_package(error: str) -> str | None:
    """Returns the module that an error of an import, a registry or a model misses."""
    found = MISSING.search(error)
    name = next((group for group in found.groups() if group), None) if found else None
    return None if name in sys.modules else name


def without_pretrained(cfg: Any) -> Any:
    """Returns the config without pretrained initialisations, which would be downloaded and then overwritten."""
    if isinstance(cfg, dict):
        kept: dict[str, Any] = {}
        for key, value in cfg.items():
            downloads = key == 'init_cfg' and isinstance(value, dict) and value.get('type') in PRETRAINED_PREFIXES
            if downloads or key in ('pretrained', 'teacher_ckpt'):
                kept[key] = False if isinstance(value, bool) else None
            else:
                kept[key] = without_pretrained(value)
        return kept
    if isinstance(cfg, (list, tuple)):
        return type(cfg)(without_pretrained(item) for item in cfg)
    return cfg
