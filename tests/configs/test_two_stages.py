"""The one command of the README: stage 1 is announced, run, and reused by a second run, from whichever folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_configs
from distill_cases import save_weights
from mmengine.config import Config
from scenes import DET_METAINFO
from tool_runs import run_tool

from freekd_mm.engine import training
from freekd_mm.engine.training import ensure_prompt
from freekd_mm.prompts.prompt_file import load_prompt

REPO = Path(__file__).parents[2]
CONFIG = 'configs/freekd/reppoints_r50.py'


@pytest.fixture(scope='module')
def stage1(tmp_path_factory: pytest.TempPathFactory, scenes_root: Path) -> Path:
    """The shipped stage 1 of the teacher on tiny pictures: one iteration, random weights asked for by name."""
    path = tmp_path_factory.mktemp('stage1') / 'prompt.py'
    loader = {**tiny_configs.detector(scenes_root, size=128)['train_dataloader'], 'batch_size': 2}
    loader['_delete_'] = True
    path.write_text(
        f'_base_ = [{str(REPO / "configs/freekd/prompt/reppoints_x101-dcn.py")!r}]\n'
        f'train_dataloader = {loader!r}\n'
        'val_dataloader = val_evaluator = val_cfg = test_dataloader = test_evaluator = test_cfg = None\n'
        'model = dict(backbone=dict(init_cfg=None))\n'
        'load_from = None\n'
        "custom_hooks = [dict(type='freekd_mm.FrequencyPromptHook', modules='neck', max_iters=1, "
        'allow_random_teacher=True)]\n'
    )
    return path


def train(stage1: Path, root: Path, out: Path) -> str:
    """Runs tools/train.py on the shipped config; everything else is on its command line."""
    prompt = out / 'prompt/frequency_prompt.pth'
    dataset = 'train_dataloader.dataset'
    options = [
        f'frequency_prompt.cfg_path={stage1}',
        f'frequency_prompt.file={prompt}',
        f'model.distill.freekd.loss.prompt={prompt}',
        'model.teacher.checkpoint=None',
        'model.teacher.allow_random=True',
        'model.architecture.backbone.init_cfg=None',
        f'{dataset}.data_root={root}/',
        f'{dataset}.metainfo.classes=({",".join(DET_METAINFO["classes"])})',
        f'{dataset}.pipeline.2.scale=(128,128)',
        'train_dataloader.num_workers=0',
        'train_dataloader.persistent_workers=False',
        'train_dataloader.batch_size=4',
        'train_cfg.max_epochs=1',
        'val_cfg=None',
        'val_dataloader=None',
        'val_evaluator=None',
        'default_hooks.checkpoint=None',
        'default_hooks.logger.interval=1',
    ]
    command = [sys.executable, 'tools/train.py', CONFIG, '--work-dir', str(out / 'student'), '--cfg-options', *options]
    environment = {**os.environ, 'PYTHONPATH': f'{REPO}:{os.environ["PYTHONPATH"]}'}
    done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def test_one_command_runs_both_stages_and_the_next_reuses_the_first(
    stage1: Path, scenes_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = train(stage1, scenes_root, tmp_path)
    assert 'stage 1 of 2' in first
    assert 'stage 2 of 2' in first
    assert 'distill.loss_freekd' in first
    prompt = tmp_path / 'prompt/frequency_prompt.pth'
    assert list(load_prompt(prompt).tokens) == [f'neck[{level}]' for level in range(5)]
    logs = tmp_path.glob('*/*/vis_data/2*.json')
    assert [log.parts[-4] for log in logs] == ['student']
    written = prompt.stat().st_mtime_ns

    cfg = Config.fromfile(REPO / CONFIG)
    cfg.merge_from_dict({'frequency_prompt.cfg_path': str(stage1), 'frequency_prompt.file': str(prompt)})
    cfg.model.distill.freekd.loss.prompt = str(prompt)
    said = []
    monkeypatch.setattr('freekd_mm.engine.training.say', said.append)
    ensure_prompt(dict(cfg.frequency_prompt), cfg)
    assert said == [f'stage 1 of 2: reusing the frequency prompt {prompt}']
    assert prompt.stat().st_mtime_ns == written


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='the tools run as forks of this process')
def test_a_prompt_is_trained_once_whichever_folder_the_training_starts_from(scenes_root: Path, tmp_path: Path) -> None:
    project, elsewhere = tmp_path / 'project', tmp_path / 'elsewhere'
    for folder in (project, elsewhere):
        folder.mkdir()
    for name, options in (('student', {}), ('teacher', {'width': 16, 'channels': 24})):
        config = tiny_configs.detector(scenes_root, **options)
        (project / f'{name}.py').write_text(tiny_configs.source(config))
        save_weights(config['model'], project / f'{name}.pth', 'mmdet')
    make = ['make_config.py', 'student.py', 'teacher.py', '--teacher-checkpoint', 'teacher.pth', '--no-inherit']
    made = run_tool(project, *make, '--method', 'wavelet-prompt', '--prompt-iters', 1, '-o', 'kd.py')
    assert made[0] == 0, made[1]
    status, said = run_tool(elsewhere, 'train.py', project / 'kd.py')
    assert status == 0, said
    prompt = project / 'work_dirs/kd_prompt_selective/frequency_prompt.pth'
    assert f'stage 1 of 2: {prompt} does not exist yet' in said
    assert [path.name for path in (elsewhere / 'work_dirs').iterdir()] == ['kd']
    written = prompt.stat().st_mtime_ns
    status, said = run_tool(project, 'train.py', 'kd.py')
    assert status == 0, said
    assert f'stage 1 of 2: reusing the frequency prompt {prompt}' in said
    assert prompt.stat().st_mtime_ns == written

    # A prompt that was made before is named so that it is found, too.
    ready = ['--method', 'wavelet', '--prompt', 'work_dirs/kd_prompt_selective/frequency_prompt.pth', '-o', 'ready.py']
    assert run_tool(project, *make, *ready)[0] == 0
    status, said = run_tool(elsewhere, 'train.py', project / 'ready.py')
    assert status == 0, said


def test_stage_1_has_the_length_of_the_training_and_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    own, length = {'type': 'IterBasedTrainLoop', 'max_iters': 7}, {'type': 'EpochBasedTrainLoop', 'max_epochs': 12}
    Path('stage1.py').write_text(f"work_dir = 'elsewhere'\ntrain_cfg = {own!r}\n")
    prompt = tmp_path / 'prompt/tokens.pth'
    runs, writes, precisions = [], [], []

    def run(cfg: Config, amp: bool, resume: str | None = None) -> None:
        runs.append((cfg.work_dir, cfg.train_cfg, resume))
        precisions.append(amp)
        for path in writes:
            path.touch()

    def ensure(**settings: Any) -> Config:
        options = {'cfg_path': 'stage1.py', 'file': 'prompt/tokens.pth'}
        cfg = Config({'frequency_prompt': options, 'model': {'prompt': options['file']}, **settings})
        ensure_prompt(options, cfg, amp=len(precisions) == 1)
        return cfg

    monkeypatch.setattr(training, 'run', run)
    with pytest.raises(RuntimeError, match=r'stage1\.py should have written \S+tokens\.pth, but did not'):
        ensure(train_cfg=length)
    prompt.parent.mkdir()
    (prompt.parent / 'iter_2.pth').touch()
    writes.append(prompt)
    assert ensure(train_cfg=length).model.prompt == str(prompt)
    prompt.unlink()
    ensure()
    folder = str(prompt.parent)
    assert runs == [(folder, length, None), (folder, length, 'auto'), (folder, own, 'auto')]
    assert precisions == [False, True, False]
