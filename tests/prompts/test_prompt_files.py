"""Prompt files: round trips, the released format, and what is refused."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from freekd_mm.checkpoints.loading import UntrustedCheckpointError
from freekd_mm.compat.versions import zip_equal
from freekd_mm.prompts import PoIMaskGenerator, PromptFile, load_prompt, poi_masks, save_prompt
from freekd_mm.prompts.prompt_file import new_prompt_file, prompt_content, use_prompt
from freekd_mm.registry import MODELS


def prompt(count=3, channels=4, **options):
    tokens = {f'neck[{index}]': torch.randn(4, 2, channels + index) for index in range(count)}
    return PromptFile(tokens, teacher='teacher.pth', teacher_sha256='ab12', **options)


def test_a_file_gives_back_what_was_written(tmp_path):
    wanted = prompt(measured={'images': 3, 'task_loss': [0.5, 0.4]})
    path = save_prompt(wanted, tmp_path / 'deep' / 'prompt.pth')
    assert os.listdir(path.parent) == ['prompt.pth'], 'no temporary file stays behind'
    got = load_prompt(path)
    assert {place: tokens.tolist() for place, tokens in got.tokens.items()} == {
        place: tokens.tolist() for place, tokens in wanted.tokens.items()
    }
    for name in ('levels', 'grouping', 'num_tokens', 'teacher', 'teacher_sha256', 'measured'):
        assert getattr(got, name) == getattr(wanted, name)


def test_a_file_is_data_only(tmp_path):
    path = save_prompt(prompt(), tmp_path / 'prompt.pth')
    assert torch.load(path, weights_only=True)['format'] == 'freekd_mm.frequency_prompt'


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = save_prompt(prompt(), tmp_path / 'prompt.pth')
    before = path.read_bytes()

    def full_disk(content, part):
        part.write_bytes(b'half')
        raise OSError('No space left on device')

    monkeypatch.setattr(torch, 'save', full_disk)
    with pytest.raises(OSError, match='No space'):
        save_prompt(prompt(), path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ['prompt.pth']


@pytest.mark.parametrize('prefix', ['', 'distiller.losses.loss_maskd_fpn.'])
@pytest.mark.parametrize('inside', [True, False])
def test_the_released_format_loads(tmp_path, prefix, inside):
    tokens = [torch.randn(4, 6, 8) for _ in range(5)]
    state = {f'{prefix}mask_modules.{i}.mask_token': value for i, value in enumerate(tokens)}
    state.update(
        {f'{prefix}mask_modules.0.prob.0.weight': torch.randn(2), 'student.backbone.conv1.weight': torch.randn(2)}
    )
    path = tmp_path / 'released.pth'
    torch.save({'state_dict': state, 'meta': {'epoch': 1}} if inside else state, path)
    got = load_prompt(path)
    assert (got.num_tokens, got.levels, got.grouping) == (6, 3, 'level')
    generator = PoIMaskGenerator(8, prompt=str(path))
    for index, value in enumerate(tokens):
        assert torch.equal(generator.get_buffer(f'tokens{index}'), value)


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path):
    trap = tmp_path / 'trap'
    for name, write in (('zip.pth', torch.save), ('plain.pth', lambda x, path: path.write_bytes(pickle.dumps(x)))):
        write({'mask_modules.0.mask_token': Evil(str(trap))}, tmp_path / name)
        with pytest.raises((UntrustedCheckpointError, RuntimeError), match=r'should (hold tensors|be a PyTorch)'):
            load_prompt(tmp_path / name)
        assert not trap.exists()


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ({'state_dict': {'backbone.conv1.weight': torch.zeros(1)}}, r"'mask_modules\.<level>\.mask_token'.*backbone"),
        ([torch.zeros(1)], 'should be a prompt file of .* but holds nothing'),
        ({}, 'but holds nothing'),
        ({'mask_modules.0.mask_token': torch.zeros(4, 2)}, r'should be a tensor of shape \(levels \+ 1, T, C\)'),
        (
            {'mask_modules.0.mask_token': torch.zeros(4, 2, 3), 'mask_modules.1.mask_token': torch.zeros(4, 3, 3)},
            r'tokens of released\[1\] should be of shape \(4, 2, .C.\)',
        ),
        ({'format': 'freekd_mm.frequency_prompt'}, 'but has no tokens, levels'),
        (
            {**prompt_content(prompt(1)), 'bias': {'neck[0]': torch.zeros(1, 2)}},
            r'bias should have one entry of shape \(4, 2\) for each of neck\[0\], but got \(1, 2\) for neck\[0\]',
        ),
        ({**prompt_content(prompt(1)), 'bias': {'neck[1]': torch.zeros(4, 2)}}, r'but got \(4, 2\) for neck\[1\]'),
    ],
)
def test_other_content_is_named(tmp_path, content, message):
    torch.save(content, tmp_path / 'other.pth')
    with pytest.raises(ValueError, match=message):
        load_prompt(tmp_path / 'other.pth')


def test_a_damaged_and_a_missing_file_are_named(tmp_path):
    path = save_prompt(prompt(), tmp_path / 'prompt.pth')
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(RuntimeError, match='cannot be read'):
        load_prompt(path)
    with pytest.raises(FileNotFoundError, match=r'prompt should be an existing file.*tools/train\.py makes it first'):
        load_prompt(tmp_path / 'none.pth')


def test_a_prompt_is_found_from_any_folder_and_the_one_of_the_config_goes_first(tmp_path, monkeypatch):
    config = tmp_path / 'project/configs/kd.py'
    elsewhere = tmp_path / 'elsewhere'
    for folder in (config.parent, elsewhere):
        folder.mkdir(parents=True)
    config.write_text(
        "frequency_prompt = dict(cfg_path='p.py', file='work_dirs/p/frequency_prompt.pth')\n"
        "model = dict(distill=dict(a=dict(loss=[dict(prompt=frequency_prompt['file'])])), name='work_dirs/p')\n"
    )

    def used():
        cfg = Config.fromfile(config)
        found = use_prompt(cfg)
        assert cfg.model.distill.a.loss[0].prompt == str(found or 'work_dirs/p/frequency_prompt.pth')
        assert cfg.model.name == 'work_dirs/p'
        return found and str(found.relative_to(tmp_path))

    monkeypatch.chdir(elsewhere)
    assert used() is None
    # Made where the run stood; then one of the whole project; then one beside the config.
    for root in ('elsewhere', 'project', 'project/configs'):
        save_prompt(prompt(), tmp_path / root / 'work_dirs/p/frequency_prompt.pth')
        assert used() == f'{root}/work_dirs/p/frequency_prompt.pth'
    monkeypatch.chdir('/')
    assert used() == 'project/configs/work_dirs/p/frequency_prompt.pth'


def test_a_new_prompt_goes_where_it_is_found_from_any_folder(tmp_path, monkeypatch):
    project, package = tmp_path / 'project', tmp_path / 'lib/site-packages/mine'
    for folder in (project / 'configs', package, tmp_path / 'elsewhere'):
        folder.mkdir(parents=True)

    def made(config, current):
        config.write_text("frequency_prompt = dict(cfg_path='p.py', file='work_dirs/p.pth')\n")
        monkeypatch.chdir(tmp_path / current)
        return str(new_prompt_file(Config.fromfile(config)).relative_to(tmp_path))

    config = project / 'configs/kd.py'
    assert made(config, 'project/configs') == 'project/configs/work_dirs/p.pth'
    assert made(config, 'project') == 'project/work_dirs/p.pth'
    assert made(config, 'elsewhere') == 'project/configs/work_dirs/p.pth'
    assert made(package / 'kd.py', 'elsewhere') == 'elsewhere/work_dirs/p.pth'
    monkeypatch.setattr(os, 'access', lambda path, mode: Path(path) != project / 'configs')
    assert made(config, 'elsewhere') == 'elsewhere/work_dirs/p.pth'


def test_the_generator_gives_the_masks_of_every_level(tmp_path):
    file = prompt()
    path = str(save_prompt(file, tmp_path / 'prompt.pth'))
    cfg = dict(type='freekd_mm.PoIMaskGenerator', channels=(4, 5, 6), prompt=path)
    generator = MODELS.build(cfg)
    features = [torch.randn(2, 4 + index, 8 >> index, 6) for index in range(3)]
    for index, (masks, level) in enumerate(zip_equal(generator(features), features)):
        wanted = poi_masks(level, file.tokens[f'neck[{index}]'])
        assert torch.equal(masks.low, wanted.low)
        assert torch.equal(masks.high[2].diagonal, wanted.high[2].diagonal)
        assert not masks.low.requires_grad
    assert generator.places == ('neck[0]', 'neck[1]', 'neck[2]')
    assert not list(generator.parameters())
    assert sorted(generator.state_dict()) == ['tokens0', 'tokens1', 'tokens2']


def test_the_generator_can_choose_some_of_the_prompts(tmp_path):
    file = prompt()
    file.tokens['backbone[3]'] = torch.randn(4, 2, 7)
    path = str(save_prompt(file, tmp_path / 'prompt.pth'))
    assert PoIMaskGenerator((5, 6), prompt=path, indices=(1, 2)).places == ('neck[1]', 'neck[2]')
    assert PoIMaskGenerator(7, prompt=path, indices=(3,)).places == ('backbone[3]',)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(channels=4), r'channels of level 1 should be 5, as in the prompt of neck\[1\].*but got 4'),
        (dict(channels=(4, 5)), 'channels should be one number or one for each of the 3 prompts'),
        (dict(levels=2), 'levels should be 3, as in the prompt file'),
        (dict(indices=(0, 3)), r'indices should be in 0\.\.2, but got \[3\]'),
    ],
)
def test_options_that_do_not_fit_the_file_are_named(tmp_path, options, message):
    path = str(save_prompt(prompt(), tmp_path / 'prompt.pth'))
    with pytest.raises(ValueError, match=message):
        PoIMaskGenerator(**{'channels': (4, 5, 6), 'prompt': path, **options})


def test_another_number_of_levels_is_named(tmp_path):
    generator = PoIMaskGenerator((4, 5, 6), prompt=str(save_prompt(prompt(), tmp_path / 'prompt.pth')))
    with pytest.raises(ValueError, match=r'3 prompts \(neck\[0\], neck\[1\], neck\[2\]\), but got 2; .*indices'):
        generator([torch.zeros(1, 4, 2, 2), torch.zeros(1, 5, 2, 2)])
