"""A run that stops anywhere and resumes ends, bit for bit, where a run ends that did not stop."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from mmengine.config import Config
from torch.utils.data import DataLoader
from toy_runs import Stop, ToyImages, changed, last_state, toy_config, toy_run

from freekd_mm.checkpoints.loading import load_checkpoint_file
from freekd_mm.engine import exact
from freekd_mm.engine.training import run

LOOPS = ('epochs', 'iterations', 'passes')


@pytest.fixture(autouse=True)
def _quick(quick_disk):
    pass


def interrupted(folder, stop, loop='epochs', workers=0, every_iteration=True, **changes):
    """Returns the state behind a run that stopped once."""
    config = toy_config(folder, loop, workers, **changes)
    if every_iteration:
        config['default_hooks']['checkpoint'].update({'by_epoch': False, 'interval': 1})
    with pytest.raises(Stop):
        toy_run(config, stop)
    toy_run(config, resume='auto')
    return last_state(config['work_dir'])


def whole(folder, loop='epochs', workers=0, **changes):
    """Returns the state behind a run that nothing stopped."""
    config = toy_config(folder, loop, workers, **changes)
    toy_run(config)
    return last_state(config['work_dir'])


@pytest.mark.parametrize('loop', LOOPS)
def test_every_iteration(loop, tmp_path):
    expected = whole(tmp_path / 'whole', loop)
    assert expected
    for behind in range(1, 12):
        got = interrupted(tmp_path / str(behind), {'type': 'ToyStop', 'behind': behind}, loop)
        assert not changed(expected, got), behind


@pytest.mark.parametrize(('loop', 'behind'), [('epochs', 3), ('epochs', 7), ('iterations', 5), ('passes', 6)])
def test_workers(loop, behind, tmp_path):
    """Workers that live on between epochs; and the number of workers makes no difference at all."""
    expected = whole(tmp_path / 'whole', loop)
    got = interrupted(tmp_path / 'stopped', {'type': 'ToyStop', 'behind': behind}, loop, workers=2)
    assert not changed(expected, got)


def test_every_epoch_and_process_has_other_augmentations(monkeypatch):
    """The seeds repeat after a resume, and never within a run."""
    seeds = []
    for rank in (0, 1):
        monkeypatch.setattr(exact, 'get_rank', lambda rank=rank: rank)
        batches = exact.SeededBatches([[0, 1], [2]], seed=1)
        seeds += [batch.seed for _ in range(50) for batch in batches]
    assert len(set(seeds)) == 200
    other = exact.SeededBatches([[0, 1], [2]], seed=2)
    assert not {batch.seed for batch in other} & set(seeds)


def test_without_it_a_resume_differs(tmp_path):
    """The tests above can fail: mmengine alone ends elsewhere."""
    changes = {'reliability': {'exact_resume': False}}
    expected = whole(tmp_path / 'whole', **changes)
    got = interrupted(tmp_path / 'stopped', {'type': 'ToyStop', 'behind': 3}, **changes)
    assert changed(expected, got)


@pytest.mark.parametrize('point', ['val_epoch', 'val_iter'])
def test_an_evaluation_that_was_cut_off_is_made_up_for(point, tmp_path):
    """The schedule looks at the metric; the best checkpoint and the moving average depend on the evaluation too."""
    plateau = {'type': 'ReduceOnPlateauLR', 'monitor': 'score', 'rule': 'greater', 'patience': 0}
    plateau.update({'threshold': 10.0, 'threshold_rule': 'abs'})  # nothing is better
    changes = {
        'param_scheduler': [plateau],
        'custom_hooks': [{'type': 'EMAHook', 'momentum': 0.1}],
        'train_cfg': {'type': 'EpochBasedTrainLoop', 'max_epochs': 4, 'val_interval': 1},
    }
    expected = whole(tmp_path / 'whole', **changes)
    assert expected['optimizer/param_groups/0/lr'] < 0.01
    stop = {'type': 'ToyStop', 'behind': 6, 'point': point}
    got = interrupted(tmp_path / 'stopped', stop, every_iteration=False, **changes)
    assert not changed(expected, got)


def test_an_evaluation_that_was_finished_is_not_repeated(tmp_path):
    """Its best checkpoint was written with it; a schedule that looks at the metric would step twice."""
    config = toy_config(tmp_path)
    config['default_hooks']['checkpoint']['save_best'] = 'score'
    config['default_hooks']['checkpoint']['rule'] = 'greater'
    toy_run(config)
    assert len(list((tmp_path / 'work').glob('best_score_*.pth'))) == 1
    before = last_state(config['work_dir'])
    toy_run(config, {'type': 'ToyStop', 'behind': 12, 'point': 'val_epoch'}, resume='auto')
    assert not changed(before, last_state(config['work_dir']))


def test_augmentations_that_keep_pictures_of_earlier_batches_are_named(monkeypatch):
    said = []
    monkeypatch.setattr(exact, 'warn', said.append)
    dataset = ToyImages()
    for kind in ('Mosaic', 'CachedMosaic'):
        config = {'dataset': {'dataset': {'pipeline': [{'type': f'mmdet.{kind}'}, {'type': kind}]}}}
        runner = SimpleNamespace(
            _train_dataloader=DataLoader(dataset), seed=0, register_hook=lambda *_, **options: None
        )
        runner.cfg = Config({'train_dataloader': config})
        exact.ExactResumeHook().prepare(runner)
    assert said == ['resumes are not exact with CachedMosaic: pictures of earlier batches are not saved']


def test_gradients_that_wait_for_more(tmp_path):
    wrapper = {'type': 'OptimWrapper', 'optimizer': {'type': 'SGD', 'lr': 0.01}, 'accumulative_counts': 4}
    expected = whole(tmp_path / 'whole', optim_wrapper=wrapper)
    for behind in (3, 5, 6):
        stop = {'type': 'ToyStop', 'behind': behind}
        assert not changed(expected, interrupted(tmp_path / str(behind), stop, optim_wrapper=wrapper)), behind


def test_seed_left_to_chance(tmp_path):
    """Without a seed in the config the resumed run takes the first run's, for the order of the data too."""
    config = toy_config(tmp_path, randomness={'seed': None})
    with pytest.raises(Stop):
        toy_run(config, {'type': 'ToyStop', 'behind': 7})
    toy_run(config, resume='auto')
    got = last_state(config['work_dir'])
    seed = load_checkpoint_file(tmp_path / 'work' / 'epoch_2.pth')['meta']['seed']
    assert not changed(whole(tmp_path / 'whole', randomness={'seed': seed}), got)


def test_no_data_is_loaded_on_the_way_to_the_place(tmp_path, monkeypatch):
    """mmengine loads every batch again that was trained on before."""
    config = toy_config(tmp_path, 'iterations')
    with pytest.raises(Stop):
        toy_run(config, {'type': 'ToyStop', 'behind': 9})
    loaded = []
    load = ToyImages.__getitem__
    monkeypatch.setattr(ToyImages, '__getitem__', lambda self, index: loaded.append(index) or load(self, index))
    config['val_dataloader'] = config['val_evaluator'] = config['val_cfg'] = None
    toy_run(config, resume='auto')
    assert len(loaded) == 3 * 4


@pytest.mark.parametrize('named', [False, True])
def test_resume_in_the_config_is_that_of_the_command(named, tmp_path):
    config = toy_config(tmp_path)
    with pytest.raises(Stop):
        toy_run(config, {'type': 'ToyStop', 'behind': 7})
    run(Config({**config, 'resume': True, 'load_from': str(tmp_path / 'work/epoch_2.pth') if named else None}))
    assert not changed(whole(tmp_path / 'whole'), last_state(config['work_dir']))


def test_load_from_of_stage_1_is_the_teacher_also_in_a_resume(tmp_path, monkeypatch):
    def resumed(cfg, resume):
        found.append(resume)
        raise Stop

    found = []
    monkeypatch.setattr('freekd_mm.engine.training.resume_from', resumed)
    hooks = [{'type': 'freekd_mm.FrequencyPromptHook', 'modules': 'backbone'}]
    with pytest.raises(Stop):
        run(Config(toy_config(tmp_path, custom_hooks=hooks, resume=True, load_from='teacher.pth')))
    assert found == ['auto']
