"""Whether the weights in a file are those of a model: one answer for teachers, tests, exports, pictures and resumes."""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from freekd_mm.compat.versions import remove_prefix
from freekd_mm.log import warn
from freekd_mm.text import some

# With ``allow_mismatch`` at least this share of the weights must come from the file.
MOST = 0.9
# Counters, and states that are no weights.
UNCOUNTED = ('num_batches_tracked', '_extra_state')
#: Begins the names of what a distillation adds to a student's weights.
PREFIX = 'distillation.'


class WeightsMismatchError(RuntimeError):
    """A checkpoint does not fit the model."""


@dataclass(frozen=True)
class Fit:
    """Which of the ``count`` weights of a model a file lacks, has in another shape, or has in addition."""

    model: str
    count: int
    missing: list[str]
    reshaped: list[str]
    unused: list[str]

    @property
    def is_whole(self) -> bool:
        """Whether the file has all weights of the model."""
        return not self.missing and not self.reshaped

    @property
    def share(self) -> float:
        """The part of the weights that fits."""
        return 1 - (len(self.missing) + len(self.reshaped)) / max(self.count, 1)

    def __str__(self) -> str:
        return f'missing: {some(self.missing)}; other shape: {some(self.reshaped)}'


def weights_of(file: Any, source: Any) -> OrderedDict[str, Any]:
    """Returns the weights in what a checkpoint file held, by the names that the bare model has for them."""
    state = file.get('state_dict', file.get('model', file)) if isinstance(file, dict) else file
    if not isinstance(state, dict) or not any(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f'{source} should hold a state_dict, but holds {", ".join(map(str, list(file)[:8]))}')
    weights = OrderedDict((remove_prefix(key, 'module.'), value) for key, value in state.items())
    # Old files have their version here; the models need it to rename their keys while they load.
    weights._metadata = getattr(state, '_metadata', {})  # type: ignore[attr-defined]
    return weights


def load_what_fits(model: nn.Module, weights: Mapping[str, Any]) -> Fit:
    """Loads what has the names and shapes of the model's weights."""
    own = {key: tuple(value.shape) for key, value in model.state_dict().items() if not key.endswith(UNCOUNTED)}
    found: list[Any] = []
    reshaped: list[str] = []
    handle = model.register_load_state_dict_post_hook(lambda _, keys: found.append(keys))
    try:
        model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        # The rest is loaded. The names are those that the model has, whatever it calls them in the file.
        named = re.findall(r'size mismatch for ([^:\n]+):.*?(\[.*?\])', str(error))
        if len(named) < str(error).count('\n\t'):
            raise
        reshaped = [f'{key} {own.get(key)} but {tuple(json.loads(shape))} in the file' for key, shape in named]
    finally:
        handle.remove()
    missing = sorted(own.keys() & set(found[0].missing_keys))
    return Fit(type(model).__name__, len(own), missing, reshaped, list(found[0].unexpected_keys))


def load_whole(model: nn.Module, weights: Mapping[str, Any], source: Any, allow_mismatch: bool | None = None) -> Fit:
    """Loads weights; raises an error unless the file has all of the model's, without NaN or infinity.

    ``allow_mismatch`` accepts missing and other shapes if most is covered; None if that is not an option.
    """
    fit = load_what_fits(model, weights)
    if not fit.is_whole:
        report = f'{source} should fit {fit.model}, but only {fit.share:.0%} of its {fit.count} weights do; {fit}'
        if not allow_mismatch or fit.share < MOST:
            hint = '; to continue, set allow_mismatch=True' if allow_mismatch is False and fit.share >= MOST else ''
            hint = f'; allow_mismatch accepts no less than {MOST:.0%}' if allow_mismatch else hint
            raise WeightsMismatchError(f'{report}. Check that config and checkpoint belong together{hint}.')
        warn(report)
    broken = [name for name, value in model.named_parameters() if not bool(torch.isfinite(value).all())]
    broken += [name for name, value in model.named_buffers() if bool(torch.isnan(value).any())]
    if broken:
        raise ValueError(
            f'{source} should hold finite weights, but NaN or infinity is in {some(broken)}: the training that wrote '
            'it diverged; take an earlier checkpoint'
        )
    return fit
