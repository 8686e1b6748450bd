"""Whether weights fit a model: their names, and that they are finite."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from freekd_mm.checkpoints.fitting import load_what_fits, load_whole, weights_of


def test_weights_of_a_parallel_model_fit_the_bare_one() -> None:
    model, other = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    nn.init.normal_(other.weight)
    weights = weights_of({'state_dict': nn.DataParallel(other).state_dict()}, 'x.pth')
    assert load_whole(model, weights, 'x.pth').is_whole
    assert torch.equal(model.weight, other.weight)


@pytest.mark.parametrize(('name', 'value'), [('weight', torch.inf), ('weight', torch.nan), ('running_var', torch.nan)])
def test_weights_and_statistics_that_are_not_finite_are_named(name: str, value: float) -> None:
    weights = nn.BatchNorm2d(3).state_dict()
    weights[name][1] = value
    with pytest.raises(ValueError, match=rf'x\.pth should hold finite weights, but NaN or infinity is in {name}:'):
        load_whole(nn.BatchNorm2d(3), weights, 'x.pth')


class Renamed(nn.Linear):
    """Has another name for its weight in old files, as some heads have."""

    def _load_from_state_dict(self, state, prefix, *args):
        state[f'{prefix}weight'] = state.pop(f'{prefix}kernel')
        super()._load_from_state_dict(state, prefix, *args)


def test_what_fits_is_loaded_also_if_a_renamed_weight_has_another_shape() -> None:
    model = nn.Sequential(Renamed(2, 3), nn.Linear(3, 1))
    fit = load_what_fits(model, {'0.kernel': torch.ones(80, 2), '0.bias': torch.ones(3), '1.gain': torch.ones(1)})
    assert fit.reshaped == ['0.weight (3, 2) but (80, 2) in the file']
    assert (fit.missing, fit.unused) == (['1.bias', '1.weight'], ['1.gain'])
    assert torch.equal(model[0].bias, torch.ones(3))
