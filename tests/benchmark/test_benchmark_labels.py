"""Plans in which only some pictures have labels: what each row trains on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_configs
import torch
import yaml
from mmengine.config import Config
from mmengine.registry import init_default_scope

from freekd_mm.benchmark.jobs import PSEUDO, ConfigMaker, FewLabels, make_jobs
from freekd_mm.benchmark.plan import load_plan
from freekd_mm.benchmark.run import run_job
from freekd_mm.compat import install
from freekd_mm.engine.training import run
from freekd_mm.registry import DATASETS
from freekd_mm.runtime.config import build_model, find_model

pytest.importorskip('mmdet')
ROWS = {
    'distilled': {'entries': 'mse'},
    'unlabelled': {'entries': 'mse', 'rest': 'unlabelled'},
    'pseudo': {'entries': None, 'rest': 'pseudo'},
    'all': {'entries': None, 'rest': 'labelled'},
}


def write_plan(folder, **changes):
    path = folder / 'plan.yaml'
    plan = {'name': 'few', 'metric': 'coco/bbox_mAP', 'seeds': [0], 'labels': 0.5, 'methods': ROWS}
    path.write_text(yaml.safe_dump({**plan, 'student': 'student.py', 'teacher': 'teacher.py', **changes}))
    return path


@pytest.fixture
def jobs(tmp_path, scenes_root):
    """The jobs by row; the teacher has random weights, and nothing has run yet."""
    install()
    for name, width in (('student', 8), ('teacher', 16)):
        config = tiny_configs.detector(scenes_root, width=width)
        config['train_dataloader']['drop_last'] = True
        tiny_configs.write(tmp_path / f'{name}.py', config)
    plan = load_plan(write_plan(tmp_path, pseudo_score=0.0))
    maker = ConfigMaker(plan, None, tmp_path / 'work/cache/few')
    maker.few.write()
    found = {job.method: job for job in make_jobs(plan, maker, tmp_path / 'work')}
    file = found['teacher'].product
    file.parent.mkdir(parents=True)
    torch.save({'state_dict': build_model(*find_model(maker.teacher_cfg)).state_dict()}, file)
    return found


def names(dataset):
    return [dataset.get_data_info(index)['img_path'] for index in range(len(dataset))]


def test_each_row_trains_on_its_pictures(jobs, scenes_root):
    pictures = {str(file) for file in (scenes_root / 'train2017').iterdir()}
    label, pseudo = jobs[PSEUDO], jobs['pseudo']
    assert label.needs == (jobs['teacher'].product,)
    assert pseudo.needs == (jobs['teacher'].product, label.product)
    label.folder.mkdir(parents=True)
    config = label.config()
    config.benchmark = {'method': PSEUDO, 'metric': 'coco/bbox_mAP', 'product': str(label.product)}
    config.dump(label.folder / 'config.py')
    result = run_job(label.folder)
    assert result['pictures'] == result['labelled'] == len(pictures) / 2

    init_default_scope('mmdet')
    data = {name: DATASETS.build(job.config().train_dataloader.dataset) for name, job in jobs.items() if name != PSEUDO}
    few = set(names(data['student']))
    assert len(few) == len(pictures) / 2
    assert few < pictures
    assert set(names(data['teacher'])) == set(names(data['distilled'])) == set(names(data['unlabelled'])) == few
    assert set(map(str, data['unlabelled'].unlabelled.files)) == pictures - few
    assert set(names(data['all'])) == set(names(data['pseudo'])) == pictures
    real, predicted = data['pseudo'].datasets
    assert set(names(real)) == few
    content = json.loads(label.product.read_text())
    assert sum(result['boxes'].values()) == len(content['annotations']) > 0
    assert len(predicted.get_data_info(0)['instances']) > 0


def test_each_config_keeps_its_own_pipeline(tmp_path, scenes_root):
    """Only the annotations change: not the teacher's pictures, and not what a row says."""
    install()
    for name, size in (('student', 64), ('teacher', 96)):
        tiny_configs.write(tmp_path / f'{name}.py', tiny_configs.detector(scenes_root, size=size))
    options = {'train_dataloader.dataset.pipeline.2.scale': (128, 128)}
    plan = load_plan(write_plan(tmp_path, methods={'row': {'entries': None, 'rest': 'labelled'}}))
    method = replace(plan.methods['row'], options=options)
    maker = ConfigMaker(plan, None, tmp_path)
    configs = [maker.student(0), maker.teacher(), maker.distilled(method, 0, tmp_path, None)]
    datasets = [cfg.train_dataloader.dataset for cfg in configs]
    assert [tuple(dataset.pipeline[2].scale) for dataset in datasets] == [(64, 64), (96, 96), (128, 128)]
    assert [Path(dataset.ann_file).name for dataset in datasets] == [
        *['labels-0.5.json'] * 2,
        'instances_train2017.json',
    ]


def test_a_folder_is_that_of_the_run_and_no_part_of_the_data(scenes_root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = Config(tiny_configs.detector(scenes_root))
    few = FewLabels(Path('cache'), 0.5, cfg.train_dataloader.dataset.to_dict())
    few.write()
    few.set(cfg)
    init_default_scope('mmdet')
    found = names(DATASETS.build(cfg.train_dataloader.dataset))
    rest = (tmp_path / 'cache/labels-0.5.txt').read_text().splitlines()
    assert {*found, *rest} == {str(file) for file in (scenes_root / 'train2017').iterdir()}


@pytest.mark.parametrize('row', ['unlabelled', 'pseudo'])
def test_rows_train(jobs, row, tmp_path):
    if row == 'pseudo':
        jobs[PSEUDO].folder.mkdir(parents=True)
        labels = Path(jobs['student'].config().train_dataloader.dataset.ann_file)
        jobs[PSEUDO].product.write_text(labels.read_text())
    cfg = jobs[row].config()
    cfg.work_dir = str(tmp_path / 'run')
    model = run(cfg)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'labels': 1.0}, r'labels should be a share of the training pictures, like 0\.1'),
        ({'labels': None}, "method 'all' has 'rest', so the plan should have 'labels'"),
        ({'methods': {'x': {'rest': 'unlabeled'}}}, r"rest of method 'x' should be .*Did you mean 'unlabelled'"),
    ],
)
def test_mistakes_are_named(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        load_plan(write_plan(tmp_path, **changes))
