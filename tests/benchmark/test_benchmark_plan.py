"""Plans: what is read, inherited, chosen and refused; the configs they lead to."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from mmengine.config import Config

from freekd_mm.benchmark.jobs import config_hash, load_task_config
from freekd_mm.benchmark.plan import Plan, load_plan

PLANS = Path(__file__).parents[2] / 'configs' / 'benchmark'
BASE = {
    'name': 'main',
    'student': 'student.py',
    'teacher': 'mmdet::gfl/gfl_r50_fpn_1x_coco.py',
    'metric': 'coco/bbox_mAP',
    'seeds': [0, 1],
    'prompts': {'short': {'max_iters': 5}},
    'methods': {'pkd': {'entries': 'pkd'}, 'pkd-w3': {'entries': 'pkd', 'set': {'pkd.loss.loss_weight': 3.0}}},
}


def write(folder: Path, name: str = 'plan.yaml', **changes: object) -> Path:
    path = folder / name
    path.write_text(yaml.safe_dump({**BASE, **changes}))
    return path


def test_paths_are_relative_to_the_plan_and_packages_stay(tmp_path):
    plan = load_plan(write(tmp_path))
    assert plan.student == str(tmp_path / 'student.py')
    assert plan.teacher == BASE['teacher']
    assert plan.methods['pkd-w3'].set == {'pkd.loss.loss_weight': 3.0}
    assert plan.task == plan.name == 'main'


def test_a_plan_takes_over_its_base_and_shares_its_results(tmp_path):
    write(tmp_path)
    (tmp_path / 'sub').mkdir()
    path = tmp_path / 'sub' / 'ablation.yaml'
    methods = {'one': {'entries': 'mse'}, 'two': {'entries': 'freekd', 'prompt': 'short'}}
    path.write_text(yaml.safe_dump({'base': '../plan.yaml', 'name': 'ablation', 'seeds': [5], 'methods': methods}))
    plan = load_plan(path)
    assert (plan.name, plan.task, plan.seeds) == ('ablation', 'main', (5,))
    assert plan.student == str(tmp_path / 'student.py')
    assert list(plan.methods) == ['one', 'two']
    assert plan.prompts == {'short': {'max_iters': 5}}


def test_methods_inherit_what_the_plan_says_unless_they_say_so_themselves(tmp_path):
    methods = {'pkd': None, 'alone': {'entries': 'pkd', 'inherit': []}, 'head': {'entries': 'pkd', 'inherit': ['head']}}
    plan = load_plan(write(tmp_path, inherit=['neck', 'head'], methods=methods))
    assert [plan.methods[name].inherit for name in methods] == [['neck', 'head'], [], ['head']]
    assert load_plan(write(tmp_path)).methods['pkd'].inherit == []


def test_a_search_is_a_row_for_each_weight(tmp_path):
    methods = {'pkd': {'title': 'PKD', 'group': 'spatial', 'weights': [0.3, 'auto']}}
    plan = load_plan(write(tmp_path, methods=methods))
    assert list(plan.methods) == ['pkd', 'pkd-x0.3', 'pkd-xauto']
    assert [method.weight for method in plan.methods.values()] == [None, 0.3, 'auto']
    assert {method.entries for method in plan.methods.values()} == {'pkd'}
    assert plan.methods['pkd-x0.3'].title == 'PKD, 0.3 times the weight'
    assert {method.group for method in plan.methods.values()} == {'spatial'}
    assert list(load_plan(write(tmp_path, methods={'pkd': {'weights': 3}})).methods) == ['pkd', 'pkd-x3']
    assert list(load_plan(write(tmp_path, methods=['pkd', 'mse'])).methods) == ['pkd', 'mse']


def test_select_takes_patterns_and_seeds(tmp_path):
    plan = load_plan(write(tmp_path))
    assert list(plan.select(['pkd-*']).methods) == ['pkd-w3']
    assert plan.select(['student'], [7]).methods == {}
    assert plan.select(['student'], [7]).seeds == (7,)
    with pytest.raises(ValueError, match=r"none matches 'pkb'.*Did you mean 'pkd'"):
        plan.select(['pkb'])


def test_seeds_are_checked_and_count_once(tmp_path):
    plan = load_plan(write(tmp_path, seeds=[2, 0, 2]))
    assert plan.seeds == (2, 0)
    assert plan.select(None, [1, 1, 0]).seeds == (1, 0)
    with pytest.raises(ValueError, match='seeds should be at least 0, but got -1'):
        plan.select(None, [-1])


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'metrics': 'x'}, "no option 'metrics'.*Did you mean 'metric'"),
        ({'methods': {'a': {'entry': 'pkd'}}}, "method 'a' has no option 'entry'"),
        ({'methods': {'a': {'prompt': 'shorter'}}}, "should be one of 'short', but got 'shorter'"),
        ({'methods': {'student': {}}}, "'student' is a row of every plan"),
        ({'methods': {'a': 'pkd'}}, "method 'a' has no option"),
        ({'methods': {'freekd': {}}}, "method 'freekd' has two stages and should have a 'prompt', short or null"),
        ({'methods': ['pkd', 'wavelet-prompt+kl']}, "method 'wavelet-prompt.kl' has two stages"),
        ({'compare': [['pkd', 'spacial']]}, "compare should be one of 'pkd'.*but got 'spacial'"),
        ({'seeds': ['zero']}, "seeds should be an integer, but got 'zero'"),
    ],
)
def test_mistakes_in_a_plan_are_named(tmp_path, changes, message):
    with pytest.raises((ValueError, TypeError), match=message):
        load_plan(write(tmp_path, **changes))


def test_missing_parts_of_a_plan_are_named(tmp_path):
    path = tmp_path / 'plan.yaml'
    path.write_text('name: x\n')
    with pytest.raises(ValueError, match='has no student, teacher, metric, seeds, methods'):
        load_plan(path)
    path.write_text('- x\n')
    with pytest.raises(ValueError, match='should hold a mapping with name'):
        load_plan(path)
    path.write_text('name: [x\n')
    with pytest.raises(ValueError, match=r'plan\.yaml should be YAML, but has a mistake'):
        load_plan(path)
    with pytest.raises(FileNotFoundError, match='plan should be an existing file'):
        load_plan(tmp_path / 'none.yaml')


@pytest.mark.parametrize('path', sorted(PLANS.glob('*.yaml')), ids=lambda path: path.stem)
def test_plans_of_the_repository_load(path):
    plan = load_plan(path)
    assert isinstance(plan, Plan)
    assert len(plan.seeds) >= 3
    for model in (plan.student, plan.teacher):
        cfg = load_task_config(model, '/elsewhere/data', plan.options)
        assert cfg.train_dataloader.dataset.data_root.startswith('/elsewhere/data/')
        # Chosen on other pictures than reported. The toy chooses nothing.
        assert path.stem.startswith('scenes') or cfg.val_dataloader.dataset != cfg.test_dataloader.dataset
        assert cfg.train_dataloader.num_workers == 0


def test_data_root_replaces_the_own_one_wherever_it_stands(tmp_path):
    path = tmp_path / 'cfg.py'
    path.write_text(
        "data_root = 'data/mine/'\n"
        "ann = [dict(file=data_root + 'a.json'), ('data/mine/', 'other/data/mine/')]\nlr = 1\n"
    )
    cfg = load_task_config(str(path), tmp_path / 'there', {'lr': 2})
    assert cfg.ann[0].file == f'{tmp_path}/there/a.json'
    assert tuple(cfg.ann[1]) == (f'{tmp_path}/there/', 'other/data/mine/')
    assert cfg.lr == 2
    path.write_text('lr = 1\n')
    with pytest.raises(KeyError, match="should define 'data_root'"):
        load_task_config(str(path), tmp_path, {})


def test_a_folder_whose_name_only_begins_like_the_data_root_stays(tmp_path):
    path = tmp_path / 'cfg.py'
    path.write_text("data_root = 'data/mine'\nfiles = ['data/mine/a.json', 'data/mine_extra/x.json', 'data/mine']\n")
    cfg = load_task_config(str(path), '/there', {})
    assert [Path(file) for file in cfg.files] == [Path('/there/a.json'), Path('data/mine_extra/x.json'), Path('/there')]
    assert Path(cfg.data_root) == Path('/there')


def test_the_hash_depends_on_the_experiment_and_not_on_its_place():
    def make(root: str, work: str, lr: float) -> str:
        cfg = dict(data_root=root, file=f'{root}a.json', prompt=f'{work}/cache/t/prompt.pth', lr=lr, work_dir=work)
        return config_hash(Config(cfg), work)

    assert make('/a/', '/w', 0.1) == make('/b/c/', '/v', 0.1)
    assert make('/a/', '/w', 0.1) != make('/a/', '/w', 0.2)
