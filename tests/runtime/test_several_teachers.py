"""Several teachers: each entry learns from its own as if it were the only one."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import tiny_configs
import torch
from distill_cases import CWD, build, det_samples, distilled, images, save_weights
from html_checks import check_page
from mmengine.config import Config
from test_foreign import folder, module, transformers  # noqa: F401 - fixtures

from freekd_mm.checkpoints.sources import short_hash
from freekd_mm.engine.training import run
from freekd_mm.report.build import write_report
from freekd_mm.report.configs import differences
from freekd_mm.runtime.export import export_student
from freekd_mm.visualize.draw import visualize

STUDENT = tiny_configs.detector(Path('.'))['model']
BIG = tiny_configs.detector(Path('.'), width=16)['model']
#: Not the student's normalisation, and the same for both.
HALF = {'mean': [0.0, 0.0, 0.0], 'std': [255.0, 255.0, 255.0], 'blocks': [0]}
ENTRIES = {
    'neck': {'student': 'neck', 'loss': CWD},
    'one': {'student': 'neck[0]', 'teacher': 'backbone', 'of': 'one', 'loss': CWD, 'weight': 0.5},
    'two': {'student': 'neck[0]', 'teacher': 'backbone', 'of': 'two', 'loss': CWD},
}


def student(teachers, entries, **options):
    return build(distilled({'model': STUDENT}, teachers, entries, **options)['model'])


@pytest.fixture(scope='module')
def teachers(tmp_path_factory):
    """A detector, and two modules of which one is wider; all with weights of their own."""
    path = tmp_path_factory.mktemp('teachers')
    for name, width in (('one', 6), ('two', 9)):
        torch.save(build_module(width).state_dict(), path / f'{name}.pth')
    others = [
        module(name=name, checkpoint=str(path / f'{name}.pth'), allow_random=False, kwargs={'width': width}, **HALF)
        for name, width in (('one', 6), ('two', 9))
    ]
    return [{'model': BIG, 'checkpoint': str(save_weights(BIG, path / 'big.pth'))}, *others]


def build_module(width):
    from test_foreign import Pyramid

    return Pyramid(width)


def test_each_entry_has_the_loss_of_its_teacher_alone(teachers):
    model = student(teachers, ENTRIES).eval()
    losses = model.loss(images(), det_samples())
    state = model.state_dict()
    assert not [key for key in state if 'teacher' in key or 'Pyramid' in key]
    for teacher, (name, entry) in zip(teachers, ENTRIES.items()):
        alone = student(teacher, {name: {key: value for key, value in entry.items() if key != 'of'}}).eval()
        alone.load_state_dict({key: value for key, value in state.items() if key in alone.state_dict()}, strict=False)
        expected = alone.loss(images(), det_samples())[f'distill.loss_{name}']
        assert torch.equal(losses[f'distill.loss_{name}'], expected)
        assert expected > 0


def test_each_runs_once_on_one_normalised_image(teachers):
    entries = {**ENTRIES, 'again': {**ENTRIES['one'], 'student': 'neck[1]'}}
    model, given = student(teachers, entries), {}
    for name, teacher in model.distillation.teachers.items():
        place = teacher.model.backbone
        place.register_forward_pre_hook(lambda _, inputs, name=name: given.setdefault(name, []).append(inputs[0]))
    model.loss(images(), det_samples())
    assert {name: len(inputs) for name, inputs in given.items()} == {'teacher': 1, 'one': 1, 'two': 1}
    assert given['one'][0] is given['two'][0]
    assert not torch.equal(given['one'][0], given['teacher'][0])
    # A teacher whose entries have no weight does not run.
    model.distillation.entry('two').scale = 0.0
    model.loss(images(), det_samples())
    assert {name: len(inputs) for name, inputs in given.items()} == {'teacher': 2, 'one': 2, 'two': 1}


@pytest.mark.parametrize(
    ('count', 'changes', 'message'),
    [
        (3, {'one': {**ENTRIES['one'], 'of': 'on'}}, "'of' of distill 'one' should be one of 'teacher', 'one', 'two'"),
        (3, {'two': {**ENTRIES['two'], 'of': 'one'}}, "each teacher should have an entry, but none has of='two'"),
        (1, {}, "'of' of distill 'one' should be one of 'teacher', but got 'one'"),
    ],
)
def test_wrong_names(teachers, count, changes, message):
    with pytest.raises(ValueError, match=message):
        student(teachers[:count], {**ENTRIES, **changes})


def test_wrong_lists(teachers):
    with pytest.raises(ValueError, match=r"several teachers should have a 'name' each.* but got 'teacher', 'teacher'"):
        student([teachers[0], teachers[0]], ENTRIES)
    with pytest.raises(ValueError, match='but got no teacher'):
        student([], ENTRIES)
    with pytest.raises(TypeError, match=r'teacher should be a dict with .* or a list of such'):
        student('big.py', ENTRIES)


@pytest.mark.parametrize('kind', ['det_config', 'seg_config'])
def test_training_and_export(kind, folder, request, tmp_path):  # noqa: F811
    """A model of the package, which the student also inherits from, and one of transformers."""
    writer = request.getfixturevalue(kind)
    detects = kind == 'det_config'
    level, inherit = ('neck[0]', 'neck') if detects else ('backbone[3]', 'decode_head')
    text = f"""
_base_ = [{str(writer(name='student'))!r}]
model = dict(
    _delete_=True,
    type='freekd_mm.DistilledModel',
    architecture={{{{_base_.model}}}},
    teacher=[
        dict(cfg_path={str(writer(name='big', width=16))!r}, allow_random=True),
        dict(name='dino', transformers={str(folder)!r}),
    ],
    inherit=[{inherit!r}],
    distill=dict(
        own=dict(student={level!r}, loss=dict(type='freekd_mm.FeatureMSELoss')),
        foundation=dict(student={level!r}, teacher='backbone', of='dino', loss=dict(type='freekd_mm.FeatureMSELoss')),
    ),
)
default_hooks = dict(checkpoint=dict(type='CheckpointHook', interval=1, by_epoch={detects}))
"""
    (tmp_path / 'kd.py').write_text(text)
    cfg = Config.fromfile(tmp_path / 'kd.py')
    model = run(cfg.copy())
    assert list(model.distillation.teachers) == ['teacher', 'dino']
    checkpoint = Path(cfg.work_dir) / ('epoch_1.pth' if detects else 'iter_2.pth')
    export = export_student(cfg, checkpoint, tmp_path / 'student.pth')
    assert export.difference == 0
    added = {key for key in torch.load(checkpoint, weights_only=False)['state_dict'] if 'distillation' in key}
    assert export.dropped == len(added) > 0
    assert not [key for key in added if 'layer' in key]
    named = [f'distillation.teacher.{name}' for name in ('0.cfg_path', '1.transformers')]
    assert set(named) <= {name for name, _ in differences([cfg.to_dict()])}


def test_a_prompt_of_the_second_teacher_and_pictures_of_all(folder, scenes_root, tmp_path, monkeypatch):  # noqa: F811
    """Stage 1 trains the prompt of one of two detectors; the pages name each teacher, and show what it predicts."""
    plain = tiny_configs.detector(scenes_root)
    for name, options in (('big', {'width': 16, 'channels': 24}), ('wide', {'head': 'gfl', 'channels': 20})):
        config = tiny_configs.detector(scenes_root, **options)
        tiny_configs.write(tmp_path / f'{name}.py', config)
        weights = save_weights(config['model'], tmp_path / f'{name}.pth')
        prompt = {'type': 'freekd_mm.FrequencyPromptHook', 'max_iters': 1, 'levels': 2, 'min_positions': 0}
        stage1 = {**copy.deepcopy(config), 'load_from': str(weights), 'custom_hooks': [prompt]}
        tiny_configs.write(tmp_path / f'stage1_{name}.py', stage1)
    masked = {'type': 'freekd_mm.FreeKDLoss', 'levels': 2, 'min_positions': 0, 'prompt': 'prompt/frequency_prompt.pth'}
    mse = {'type': 'freekd_mm.FeatureMSELoss'}
    config = distilled(
        plain,
        [
            {'cfg_path': str(tmp_path / 'big.py'), 'checkpoint': str(tmp_path / 'big.pth')},
            {'name': 'wide', 'cfg_path': str(tmp_path / 'wide.py'), 'checkpoint': str(tmp_path / 'wide.pth')},
            {'name': 'dino', 'transformers': str(folder)},
        ],
        {
            'big': {'student': 'neck', 'loss': mse},
            'masked': {'student': 'neck', 'of': 'wide', 'loss': {**masked, 'channels': 20}},
            'dino': {'student': 'neck[0]', 'teacher': 'backbone', 'of': 'dino', 'loss': mse},
        },
    )
    config['frequency_prompt'] = {'cfg_path': str(tmp_path / 'stage1_wide.py'), 'file': 'prompt/frequency_prompt.pth'}
    path = tiny_configs.write(tmp_path / 'kd.py', config)
    monkeypatch.chdir(tmp_path)
    cfg = Config.fromfile(path)
    run(cfg.copy())
    checkpoint = Path(cfg.work_dir) / 'epoch_1.pth'

    picture = next((scenes_root / 'val2017').iterdir())
    (page,) = visualize(cfg, checkpoint, [picture], tmp_path / 'page.html')
    words = check_page(page)
    named = ['big: student and teacher', 'masked: student and teacher wide', 'dino: student and teacher dino']
    assert all(title in words for title in named)
    report = write_report([cfg.work_dir], tmp_path / 'report.html', ['teacher'], pictures=1)[0]
    words = check_page(report)
    assert all(title in words for title in named)
    # A run that is called as the first teacher keeps its own column; DINOv2 predicts nothing.
    columns = re.findall('<img alt="([^"]*)"', report.read_text())[:4]
    assert columns == ['ground truth', 'teacher', f'teacher {short_hash(tmp_path / "big.pth")}', 'wide']

    # The prompt is not that of the first teacher.
    other = {**config['model'], 'teacher': config['model']['teacher'][::2]}
    entry = {'student': 'neck', 'loss': {**masked, 'channels': 20, 'prompt': str(tmp_path / masked['prompt'])}}
    other['teacher'][0] = {**other['teacher'][0], 'cfg_path': str(tmp_path / 'wide.py')}
    save_weights(Config.fromfile(tmp_path / 'wide.py').model, tmp_path / 'big.pth', seed=2)
    with pytest.raises(ValueError, match=r"distill 'big': the prompt should be made for the teacher .*big\.pth"):
        build({**other, 'distill': {'big': entry, 'dino': config['model']['distill']['dino']}})
