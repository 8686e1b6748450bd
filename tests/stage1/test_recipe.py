"""The recipe of stage 1: data, and a runner that follows it."""

from __future__ import annotations

import pytest

from freekd_mm.stage1.recipe import OPTIMIZER, default_iters, stage1_recipe


@pytest.mark.parametrize(('training', 'wanted'), [(432, 100), (800, 160), (90_000, 2000), (1, 100)])
def test_the_default_length_is_a_fifth_of_the_training_within_bounds(training, wanted):
    assert default_iters(training) == wanted


@pytest.mark.parametrize('wrapper', [{}, dict(type='OptimWrapper', clip_grad=dict(max_norm=1))])
def test_the_recipe_is_what_a_config_would_say(wrapper):
    recipe = stage1_recipe(wrapper, OPTIMIZER, 400)
    assert recipe['train_cfg'] == dict(by_epoch=False, max_iters=400, val_interval=400)
    assert recipe['optim_wrapper'] == dict(type='OptimWrapper', optimizer=OPTIMIZER)
    assert recipe['param_scheduler']['T_max'] == 400
    assert recipe['checkpoint']['interval'] == 100


def test_mixed_precision_stays():
    recipe = stage1_recipe(dict(type='AmpOptimWrapper', dtype='bfloat16'), OPTIMIZER, 400)
    assert recipe['optim_wrapper']['type'] == 'AmpOptimWrapper'
    assert recipe['optim_wrapper']['dtype'] == 'bfloat16'
