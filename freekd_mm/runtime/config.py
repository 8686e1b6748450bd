"""Finds and builds what a user names: models by an inline dict, a config file, or ``package::config``; losses."""

from __future__ import annotations

import copy
import inspect
import re
import sys
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from freekd_mm.checks import beside, check_options
from freekd_mm.registry import MODELS as OURS
from freekd_mm.registry import SCOPE

PRETRAINED_PREFIXES = ('Pretrained', 'mmengine.Pretrained')
# How Python, mmengine's registries and the models of mmdet and mmseg say that a package is missing.
MISSING = re.compile(
    '|'.join(
        [
            r"No module named '(\w+)",
            r"custom modules from .*?'(?:imports': \[?')?(\w+)(?:\.|'(?!:))",
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
    except Exception as error:
        raise_if_missing(error, repr(path))
        if isinstance(error, (ImportError, OSError)):
            raise
        raise ValueError(f'{path} should be a config that loads, but has a mistake: {error}') from error


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
    """Whether a model's config is that of a distilled student."""
    return type_name(model) == 'DistilledModel'


def type_name(cfg: Any) -> str:
    """Returns the name of a config's type, a text or an object and without its scope; or that of an object."""
    kind = cfg.get('type', '') if isinstance(cfg, dict) else type(cfg)
    return str(getattr(kind, '__name__', kind)).rsplit('.', 1)[-1]


def find_model(source: dict | Config) -> tuple[dict, str | None]:
    """Returns the model's config and its default scope."""
    # The student of a distillation config counts as the model, so that a distilled student can be a teacher.
    if 'model' not in source:
        raise ValueError("config should define 'model', but has " + ', '.join(sorted(source)))
    outer = source['model']
    model = ConfigDict(outer['architecture'] if is_distilled(outer) else outer)
    given = outer.get('data_preprocessor') or source.get('data_preprocessor')
    if given:
        model.setdefault('data_preprocessor', given)
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


def build_component(cfg: dict, what: str) -> nn.Module:
    """Builds a loss or a connector from its config; ``what`` names it in messages."""
    check_component(cfg, what, MODELS, OURS)
    return MODELS.build(copy.deepcopy(ConfigDict(cfg)))


def check_component(cfg: Any, what: str, registry: Any, ours: Any) -> None:
    """Raises an error for a type or option that does not exist in mmengine's registry; names the nearest of ours."""
    if not isinstance(cfg, dict) or not cfg.get('type'):
        raise TypeError(f"{what} should be a dict with 'type', but got {cfg!r}")
    kind = cfg['type']
    found = _find(kind, cfg.get('_scope_'), registry) if isinstance(kind, str) else kind
    if found is None:
        # The name alone: it may be right, and the scope wrong or missing.
        near = get_close_matches(kind.rsplit('.', 1)[-1], ours.names, n=1)
        hint = f" Did you mean '{SCOPE}.{near[0]}'?" if near else ''
        raise ValueError(f'type of {what} should be a registered name, but got {kind!r}.{hint}')
    own = _options(found)
    if own is not None:
        given = [key for key in cfg if key not in ('type', '_scope_')]
        check_options(f'{what} ({found.__name__})', given, own)


def _find(kind: str, scope: str | None, registry: Any) -> Any:
    """Looks a name up in the way a build does."""
    try:
        with registry.switch_scope_and_registry(scope) as searched:
            return searched.get(kind)
    except (KeyError, ImportError):
        return None


def _options(found: Any) -> list[str] | None:
    """Returns the names of the arguments of a class or function; None if it takes any.

    If it passes its ``**options`` on, those of its bases count too, or of the classes in its ``option_bases``.
    """
    names: list[str] = []
    bases = (*found.__mro__, *getattr(found, 'option_bases', ())) if inspect.isclass(found) else ()
    # nn.Module takes any option before it refuses it, or, before PyTorch 2.0, none.
    own = [base for base in bases if '__init__' in vars(base) and base is not nn.Module]
    for place in [vars(base)['__init__'] for base in own] or [found]:
        try:
            parameters = inspect.signature(place).parameters.values()
        except (TypeError, ValueError):
            return None
        names += [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and p.name != 'self']
        if all(p.kind is not p.VAR_KEYWORD for p in parameters):
            return list(dict.fromkeys(names))
    return None


def raise_if_missing(error: Exception, what: str) -> None:
    """Raises an error of one line with the command that installs a missing package."""
    name = missing_package(str(error))
    if name and 'needs the package' not in str(error):  # ours, of a model in it
        command = f'pip install {DISTRIBUTIONS.get(name, name)}'
        if name in ('torchvision', 'timm'):
            # pip would bring the torchvision of another PyTorch, and that PyTorch with it.
            command = 'docs/install.md says how (in a clone: make setup ENV=py311-torchvision)'
        elif 'custom modules' in str(error) and not (name.startswith('mm') or name in DISTRIBUTIONS):
            command = 'if it is your own, put the folder that holds it into PYTHONPATH'
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
