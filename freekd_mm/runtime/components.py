"""Builds losses and connectors, and suggests the nearest name for an unknown name or option."""

from __future__ import annotations

import copy
import inspect
from difflib import get_close_matches
from typing import Any

from mmengine.config import ConfigDict
from mmengine.registry import MODELS
from torch import nn

from freekd_mm.checks import check_options
from freekd_mm.registry import MODELS as OURS
from freekd_mm.registry import SCOPE


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
            return names
    return None
