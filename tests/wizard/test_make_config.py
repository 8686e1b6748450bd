"""make_config: what it writes for any pair of configs, and that what it writes trains."""

from __future__ import annotations

from pathlib import Path
from typing import Callable

import pytest
import tiny_configs
import torch
from distill_cases import make_config
from mmengine.config import Config
from scenes import DET_METAINFO

from freekd_mm.engine.training import run
from freekd_mm.runtime.config import build_model, find_model
from freekd_mm.wizard.make_config import plan_config
from freekd_mm.wizard.methods import METHODS, PROMPTED, list_methods, parse_methods

ConfigWriter = Callable[..., Path]


def save_teacher(config: Path, path: Path, **meta: object) -> Path:
    """Saves a checkpoint of an untrained teacher: the loading is real, the weights are random."""
    cfg, scope = find_model(Config.fromfile(config))
    torch.save({'state_dict': build_model(cfg, scope).state_dict(), 'meta': {'dataset_meta': meta}}, path)
    return path


@pytest.fixture
def det_pair(det_config: ConfigWriter, tmp_path: Path) -> tuple[Path, Path, Path]:
    """Student, teacher (other channels, one level more) and the teacher's checkpoint."""
    teacher = det_config(name='teacher', head='gfl', width=16, channels=24)
    student = det_config(name='student', head='gfl', width=8, channels=16)
    return student, teacher, save_teacher(teacher, tmp_path / 'teacher.pth')


def losses_of(cfg: Config) -> dict[str, float]:
    """Trains a config as it is and returns the last losses."""
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    cfg.train_cfg.pop('val_interval', None)
    run(cfg)
    from mmengine.logging import MessageHub

    scalars = MessageHub.get_current_instance().log_scalars
    return {key: buffer.current() for key, buffer in scalars.items() if 'distill.loss' in key}


@pytest.mark.parametrize('method', [*METHODS, 'wavelet+figkd', 'famkd+dctkd', 'pkd+ld+kl'])
def test_what_it_writes_for_a_detector_trains(
    method: str, det_pair: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    student, teacher, checkpoint = det_pair
    files = make_config(str(student), str(teacher), str(checkpoint), method, tmp_path / 'kd' / 'my_kd.py')
    uses_prompt = any(METHODS[name].prompt for name in parse_methods(method))
    assert [file.name for file in files] == (['my_kd_prompt.py'] if uses_prompt else []) + ['my_kd.py']
    cfg = Config.fromfile(files[-1])
    assert cfg.model.architecture == Config.fromfile(student).model
    if uses_prompt:
        prompt = Config.fromfile(files[0])
        assert prompt.load_from == cfg.model.teacher.checkpoint
        kinds = {'freekd': 'paper', 'freekd-code': 'code', 'freekd-plus': 'selective', 'wavelet-prompt': 'selective'}
        assert prompt.custom_hooks[-1].mode == kinds[method]
        assert cfg.frequency_prompt.cfg_path == str(files[0])
        entry = next(cfg.model.distill[name] for name in PROMPTED if name in cfg.model.distill)
        entry.loss.prompt = None
        cfg.pop('frequency_prompt')  # stage 1 has its own tests, and takes minutes here
    losses = losses_of(cfg)
    assert set(losses) == {f'train/distill.loss_{name}' for name in cfg.model.distill}
    assert all(0 < value < float('inf') for value in losses.values())


@pytest.mark.parametrize('method', ['wavelet', 'figkd', 'kl', 'famkd-review', 'dctkd', 'cwd'])
def test_what_it_writes_for_a_segmenter_trains(
    method: str, seg_config: ConfigWriter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    teacher = seg_config(name='teacher', width=16)
    checkpoint = save_teacher(teacher, tmp_path / 'teacher.pth')
    student = seg_config(name='student', width=8)
    cfg = Config.fromfile(make_config(str(student), str(teacher), str(checkpoint), method, tmp_path / 'kd.py')[-1])
    # All stages of the backbone but the last have the same stride or less to say: the last alone is compared.
    taps = {name: entry.student for name, entry in cfg.model.distill.items()}
    name = 'famkd' if method == 'famkd-review' else method
    features = {name: 'backbone[-1:]', f'{name}_head': 'decode_head.bottleneck'}
    single = {'figkd': 'decode_head', 'kl': 'decode_head', 'dctkd': 'backbone'}
    assert taps == ({method: single[method]} if method in single else features)
    assert all(0 < value < float('inf') for value in losses_of(cfg).values())


@pytest.mark.parametrize('method', ['wavelet+figkd', 'kl'])
def test_logits_of_another_size_are_resized(
    method: str, seg_config: ConfigWriter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cityscapes_root: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    config = tiny_configs.segmenter(cityscapes_root, width=16)
    config['model']['backbone']['strides'] = (1, 1, 1, 1)
    teacher = tiny_configs.write(tmp_path / 'teacher.py', config)
    checkpoint = save_teacher(teacher, tmp_path / 'teacher.pth')
    pair = str(seg_config(name='student', width=8)), str(teacher), str(checkpoint)
    cfg = Config.fromfile(make_config(*pair, method, tmp_path / 'kd.py')[-1])
    assert cfg.model.distill[method.split('+')[-1]].loss.resize
    assert all(0 < value < float('inf') for value in losses_of(cfg).values())


def test_what_the_head_classifies_can_be_left_out(seg_config: ConfigWriter, tmp_path: Path) -> None:
    teacher = seg_config(name='teacher', width=16)
    checkpoint = save_teacher(teacher, tmp_path / 'teacher.pth')
    pair = str(seg_config(name='student', width=8)), str(teacher), str(checkpoint)
    (file,) = make_config(*pair, 'wavelet', tmp_path / 'kd.py')
    assert 'teacher decode_head.bottleneck' in file.read_text()
    assert set(Config.fromfile(file).model.distill) == {'wavelet', 'wavelet_head'}
    (file,) = make_config(*pair, 'wavelet', tmp_path / 'kd.py', head=False)
    assert set(Config.fromfile(file).model.distill) == {'wavelet'}
    # The masks of a prompt are those of the features that it was trained on.
    (file,) = make_config(*pair, 'wavelet', tmp_path / 'kd.py', prompt='p.pth', check=False)
    distill = Config.fromfile(file).model.distill
    assert Path(distill.wavelet.loss.prompt).resolve() == Path('p.pth').resolve()
    assert 'prompt' not in distill.wavelet_head.loss
    with pytest.raises(ValueError, match='--no-head should change what is written, but does not with --method kl'):
        make_config(*pair, 'kl', tmp_path / 'kd.py', head=False)


def test_a_warm_up_stands_behind_the_hooks_of_the_base(det_pair: tuple[Path, Path, Path], tmp_path: Path) -> None:
    student, teacher, checkpoint = det_pair
    student.write_text(student.read_text() + "custom_hooks = [{'type': 'EMAHook'}]\n")
    (file,) = make_config(str(student), str(teacher), str(checkpoint), 'pkd+famkd', tmp_path / 'kd.py')
    hook = {'type': 'freekd_mm.DistillScheduleHook', 'warmup': 0.08, 'entries': ['famkd']}
    assert Config.fromfile(file).custom_hooks == [{'type': 'EMAHook'}, hook]


def test_the_wiring_is_spelled_out(det_pair: tuple[Path, Path, Path], tmp_path: Path) -> None:
    student, teacher, checkpoint = det_pair
    (file,) = make_config(str(student), str(teacher), str(checkpoint), 'pkd', tmp_path / 'kd.py')
    text = file.read_text()
    assert 'projected 16 -> 24' in text
    assert '24x16x16' in text


def test_stage_prompt_writes_stage_1_alone(det_pair: tuple[Path, Path, Path], tmp_path: Path) -> None:
    student, teacher, checkpoint = det_pair
    (file,) = make_config(str(student), str(teacher), str(checkpoint), 'best', tmp_path / 'p.py', stage='prompt')
    cfg = Config.fromfile(file)
    assert cfg.custom_hooks[-1].type == 'freekd_mm.FrequencyPromptHook'
    assert cfg.load_from == str(checkpoint)
    assert cfg.model == Config.fromfile(teacher).model


def test_a_ready_prompt_is_used_as_it_is(det_pair: tuple[Path, Path, Path], tmp_path: Path) -> None:
    student, teacher, checkpoint = det_pair
    (file,) = make_config(
        str(student), str(teacher), str(checkpoint), 'wavelet', tmp_path / 'kd.py', prompt='p.pth', check=False
    )
    cfg = Config.fromfile(file)
    assert Path(cfg.model.distill.wavelet.loss.prompt).resolve() == Path('p.pth').resolve()
    assert 'frequency_prompt' not in cfg
    with pytest.raises(ValueError, match=r"with one of the methods best, wavelet, .*but got 'pkd'"):
        make_config(str(student), str(teacher), str(checkpoint), 'pkd', tmp_path / 'kd.py', prompt='p.pth')


def test_fewer_levels_take_the_prompts_that_belong_to_them(
    det_config: ConfigWriter, det_pair: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    student, _, _ = det_pair
    teacher = det_config(name='tall', head='gfl', width=16, channels=24, levels=4)
    checkpoint = save_teacher(teacher, tmp_path / 'tall.pth')
    files = make_config(str(student), str(teacher), str(checkpoint), 'wavelet-prompt', tmp_path / 'kd.py')
    assert [file.name for file in files] == ['kd_prompt.py', 'kd.py']
    cfg = Config.fromfile(files[-1])
    assert cfg.model.distill.wavelet.loss.prompt.indices == (0, 1, 2)


def test_a_pyramid_that_begins_at_another_stride_is_paired_by_stride(
    scenes_root: Path, det_pair: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    config = tiny_configs.detector(scenes_root, head='gfl', width=16, channels=24)
    config['model']['backbone']['out_indices'] = (0, 1, 2)
    config['model']['neck']['in_channels'] = [16, 32, 64]
    config['model']['bbox_head']['anchor_generator']['strides'] = [4, 8, 16]
    teacher = tiny_configs.write(tmp_path / 'shifted.py', config)
    pair = str(det_pair[0]), str(teacher), str(save_teacher(teacher, tmp_path / 'shifted.pth'))
    plan = plan_config(*pair, 'wavelet', tmp_path / 'kd.py')
    assert '1 level(s) of the student without a partner, 1 level(s) of the teacher' in plan.summary()
    model = build_model(Config.fromfile(plan.write()[-1]).model, 'mmdet')
    assert [(row[2], row[4]) for row in model.distillation.entry('wavelet').rows[:2]] == [
        ('24x16x16', '16x16x16'),
        ('24x8x8', '16x8x8'),
    ]
    for method in ('kl', 'ld', 'crosskd'):
        with pytest.raises(ValueError, match='the levels of the heads have other strides'):
            plan_config(*pair, method, tmp_path / 'kd.py')


def test_stages_of_backbones_that_do_not_fit_are_named(seg_config: ConfigWriter, tmp_path: Path) -> None:
    teacher, student = seg_config(name='teacher', width=16), tmp_path / 'student.py'
    text = teacher.read_text().replace("'out_indices': (0, 1, 2, 3)", "'out_indices': (1, 2, 3)")
    student.write_text(text.replace("'in_index': 3", "'in_index': 2"))
    pair = str(student), str(teacher), str(save_teacher(teacher, tmp_path / 'teacher.pth'))
    for method in ('dctkd', 'wavelet+dctkd'):
        with pytest.raises(ValueError, match=r"'dctkd': the student has 3 levels \(.*teacher 4 \(.*Choose levels"):
            make_config(*pair, method, tmp_path / 'kd.py')


def test_every_method_has_a_line_in_the_list() -> None:
    lines = list_methods().splitlines()
    assert [line.split()[0] for line in lines] == list(METHODS)
    assert all(len(line.split()) > 4 for line in lines)


def test_an_unknown_method_names_the_nearest(det_pair: tuple[Path, Path, Path], tmp_path: Path) -> None:
    student, teacher, checkpoint = det_pair
    with pytest.raises(ValueError, match=r"should be one of best, .* but got 'frekd'.*Did you mean 'freekd'"):
        make_config(str(student), str(teacher), str(checkpoint), 'frekd', tmp_path / 'kd.py')


def test_methods_that_need_different_prompts_are_not_joined(det_pair, tmp_path):
    student, teacher, checkpoint = det_pair
    with pytest.raises(ValueError, match=r"freekd needs mode='paper' and wavelet-prompt needs mode='selective'"):
        make_config(str(student), str(teacher), str(checkpoint), 'freekd+wavelet-prompt', tmp_path / 'kd.py')


def test_the_prompt_of_one_method_is_not_for_the_other(det_pair: tuple[Path, Path, Path], tmp_path: Path) -> None:
    pair = list(map(str, det_pair))
    *_, file = make_config(*pair, 'wavelet+freekd', tmp_path / 'kd.py', prompt='p.pth', check=False)
    losses = {name: entry['loss'] for name, entry in Config.fromfile(file).model.distill.items()}
    assert 'prompt' in losses['freekd']
    assert 'prompt' not in losses['wavelet'], 'it asks for none'


def test_each_kind_of_prompt_has_a_folder_of_its_own(det_pair: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """The same output, made for one method and then for another, does not take the prompt of the first."""
    pair, files = list(map(str, det_pair)), set()
    for method in ('wavelet-prompt', 'freekd', 'freekd-code'):
        *_, file = make_config(*pair, method, tmp_path / 'kd.py')
        files.add(Config.fromfile(file).frequency_prompt.file)
    assert len(files) == 3


def test_what_we_recommend_takes_a_prompt(det_pair: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """It writes the same entry as the method that it stands for."""
    pair = list(map(str, det_pair))
    (file,) = make_config(*pair, 'best', tmp_path / 'kd.py', prompt='p.pth', check=False)
    assert Path(Config.fromfile(file).model.distill.wavelet.loss.prompt).name == 'p.pth'


@pytest.mark.parametrize(('old', 'new'), [('freekd-prompt', 'wavelet-prompt'), ('freekd-paper', 'freekd')])
def test_an_old_name_says_the_new_one(old: str, new: str) -> None:
    with pytest.raises(ValueError, match=f"'{old}' is called '{new}' now"):
        parse_methods(f'pkd+{old}')


def test_classes_that_agree_in_part_are_matched_by_name(
    det_pair: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    student, teacher, checkpoint = det_pair
    other = tmp_path / 'other.py'
    other.write_text(teacher.read_text().replace("'num_classes': 6", "'num_classes': 4"))
    names = list(DET_METAINFO['classes'])
    save_teacher(other, checkpoint, classes=('bird', names[4], names[0], names[2]))
    file = make_config(str(student), str(other), str(checkpoint), 'figkd+kl+ld+crosskd', tmp_path / 'kd.py')[-1]
    losses = losses_of(Config.fromfile(file))
    assert len(losses) == 4
    assert all(0 < value < float('inf') for value in losses.values())
    said = capfd.readouterr().out
    assert "distill 'figkd', 'kl', 'ld', 'crosskd': the student has 6 classes and the teacher 4" in said
    assert f'both know 3, the student alone {names[1]}, ' in said
    assert 'the teacher alone bird' in said


@pytest.mark.parametrize('method', ['kl', 'wavelet+figkd', 'ld', 'crosskd'])
def test_classes_that_do_not_agree_are_named(method: str, det_pair: tuple[Path, Path, Path], tmp_path: Path) -> None:
    student, teacher, checkpoint = det_pair
    save_teacher(teacher, checkpoint, classes=tuple('abcdef'))
    pair = (str(student), str(teacher), str(checkpoint))
    name = method.split('+')[-1]
    with pytest.raises(ValueError, match=f"distill '{name}': logits should be of classes that both know .* 0, the"):
        make_config(*pair, method, tmp_path / 'kd.py')
    assert not (tmp_path / 'kd.py').exists()
    for other, options in ((method, {'check': False}), ('wavelet', {})):
        assert make_config(*pair, other, tmp_path / 'kd.py', **options)


def test_heads_that_do_not_fit_are_named(
    det_config: ConfigWriter, det_pair: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    _, teacher, checkpoint = det_pair
    student = det_config(name='retina', head='retina')
    message = (
        r'distributions over the same bins .* the student predicts its boxes as deltas \(0 bins\) and the teacher as'
    )
    with pytest.raises(ValueError, match=message):
        make_config(str(student), str(teacher), str(checkpoint), 'ld', tmp_path / 'kd.py')


def test_segmenters_have_no_boxes(seg_config: ConfigWriter, tmp_path: Path) -> None:
    teacher = seg_config(name='teacher', width=16)
    checkpoint = save_teacher(teacher, tmp_path / 'teacher.pth')
    message = r'ld needs dense heads .* of the student: EncoderDecoder has no dense head \(bbox_head\)'
    with pytest.raises(ValueError, match=message):
        make_config(str(teacher), str(teacher), str(checkpoint), 'ld', tmp_path / 'kd.py')
