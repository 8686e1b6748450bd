"""Stage 1 on a tiny detector and a tiny segmenter: what is frozen, trained, logged, written and resumed."""

from __future__ import annotations

import copy
import itertools
import json
import os
from pathlib import Path

import cv2
import pytest
import torch
from mmengine.config import Config
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.optim.optimizer import amp_optimizer_wrapper
from mmengine.registry import HOOKS as ROOT_HOOKS
from mmengine.runner import Runner
from ranks import processes

from freekd_mm.checkpoints.sources import sha256
from freekd_mm.compat import install
from freekd_mm.compat.versions import resumed_loop_walks, zip_equal
from freekd_mm.losses import WaveletLoss
from freekd_mm.pictures import GAP, SIDE, TITLE
from freekd_mm.prompts import load_prompt
from freekd_mm.prompts.masks import LOW
from freekd_mm.registry import HOOKS, MODELS
from freekd_mm.stage1.bank import PromptBank
from freekd_mm.stage1.hook import FrequencyPromptHook

install()

HOOK = dict(
    type='freekd_mm.FrequencyPromptHook',
    max_iters=4,
    probe_size=(64, 64),
    mode='code',
    min_positions=0,
)


@pytest.fixture
def stage1(det_config, tmp_path):
    """A detector's plain training config with the hook, the teacher's weights beside it."""

    def make(name='stage1', config=det_config, load_from='teacher.pth', **options):
        cfg = Config.fromfile(config(name))
        if load_from == 'teacher.pth':
            load_from = write_teacher(cfg, tmp_path / f'{name}_teacher.pth')
        cfg.load_from = load_from
        cfg.train_dataloader.sampler = dict(type='InfiniteSampler', shuffle=True)
        cfg.custom_hooks = [{**HOOK, **options}]
        cfg.merge_from_dict({'default_hooks': {'logger': {'type': 'LoggerHook', 'interval': 1}}})
        return cfg

    return make


def write_teacher(cfg, path):
    scope = cfg.default_scope
    torch.manual_seed(3)
    model = MODELS.build({**cfg.model, '_scope_': scope})
    model.init_weights()
    torch.save({'state_dict': model.state_dict(), 'meta': {}}, path)
    return str(path)


def hook_of(runner):
    (hook,) = [hook for hook in runner.hooks if isinstance(hook, FrequencyPromptHook)]
    return hook


def weights(model):
    return {k: v.clone() for k, v in model.state_dict().items() if not k.startswith('frequency_prompt.')}


class Spy:
    """Looks at a runner in each iteration."""

    priority = 'VERY_LOW'

    def __init__(self, runner):
        self.runner, self.modes, self.losses = runner, [], []
        runner.register_hook(self.hook())

    def hook(self):
        from mmengine.hooks import Hook

        spy = self

        class Look(Hook):
            priority = 'VERY_LOW'

            def before_train_iter(self, runner, batch_idx, data_batch=None):
                spy.modes.append(
                    {
                        type(module).__name__: module.training
                        for module in runner.model.modules()
                        if type(module).__name__ in ('BatchNorm2d', 'RetinaHead', 'Dropout2d')
                    }
                )

            def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
                spy.losses.append({name: float(value) for name, value in outputs.items()})

        return Look()


@pytest.mark.parametrize(('mode', 'weight'), [('paper', 1.0), ('code', 1.0), ('selective', 0.0)])
def test_the_weight_of_the_dissimilarity_is_that_of_the_mode(mode, weight):
    """It would make the sum of selective masks flat again."""
    assert PromptBank({'x': {0: 4}}, mode=mode).weight == weight
    assert PromptBank({'x': {0: 4}}, weight=0.5, mode=mode).weight == 0.5


def test_the_prompt_alone_trains_and_the_file_says_where_it_belongs(stage1, tmp_path):
    cfg = stage1(max_iters=6)
    runner = Runner.from_cfg(cfg)
    spy = Spy(runner)
    runner.train()
    hook = hook_of(runner)
    teacher = torch.load(cfg.load_from)['state_dict']
    after = weights(runner.model)
    assert all(torch.equal(after[name], value) for name, value in teacher.items()), 'batch norms included'
    trained = [name for name, parameter in runner.model.named_parameters() if parameter.requires_grad]
    assert trained == [f'frequency_prompt.prompts.neck__{i}.mask_token' for i in range(3)]
    in_optimizer = [p for group in runner.optim_wrapper.param_groups for p in group['params']]
    assert [id(p) for p in in_optimizer] == [id(p) for p in hook.bank.parameters()]

    # The loop sets the model to training before each iteration; the norms do not follow.
    assert all(modes == {'BatchNorm2d': False, 'RetinaHead': True} for modes in spy.modes)
    first, last = spy.losses[0], spy.losses[-1]
    assert len(spy.losses) == 6
    assert last['prompt/overlap'] < first['prompt/overlap']
    for row in spy.losses:
        assert row['loss_prompt_dissimilarity'] == pytest.approx(row['prompt/overlap'])
        assert row['loss'] == pytest.approx(row['prompt/task'] + row['loss_prompt_dissimilarity'], rel=1e-4)
        assert row['prompt/task'] == pytest.approx(row['loss_cls'] + row['loss_bbox'], rel=1e-4)

    work = Path(cfg.work_dir)
    file = load_prompt(work / 'frequency_prompt.pth')
    assert list(file.tokens) == ['neck[0]', 'neck[1]', 'neck[2]']
    assert torch.equal(file.tokens['neck[1]'], hook.bank.places[1][2].mask_token.detach())
    assert (file.teacher, file.teacher_sha256) == (cfg.load_from, sha256(cfg.load_from))
    assert os.path.getsize(work / 'frequency_prompt.pth') < 20_000
    for index in range(3):
        picture = cv2.imread(str(work / 'frequency_prompt' / f'neck_{index}.png'))
        assert picture.shape == (4 * (SIDE + TITLE + GAP), 3 * (SIDE + GAP), 3)
    logged = [json.loads(line) for line in next(work.glob('*/vis_data/scalars.json')).read_text().splitlines()]
    assert logged[-1]['prompt/overlap'] == pytest.approx(last['prompt/overlap'], rel=1e-3)

    # Stage 2 takes the file as it is.
    levels = [torch.randn(1, 16, 8 >> i, 8 >> i) for i in range(3)]
    loss = WaveletLoss(16, prompt=str(work / 'frequency_prompt.pth'))
    assert torch.isfinite(loss(levels, [torch.randn_like(level) for level in levels]))


def test_a_checkpoint_holds_the_prompt_alone_and_training_resumes_from_it(stage1):
    whole = stage1('whole', max_iters=4)
    runner = Runner.from_cfg(copy.deepcopy(whole))
    runner.train()
    tokens = load_prompt(Path(whole.work_dir) / 'frequency_prompt.pth').tokens
    checkpoint = torch.load(Path(whole.work_dir) / 'iter_2.pth', weights_only=False)
    assert set(checkpoint['state_dict']) == {f'frequency_prompt.prompts.neck__{i}.mask_token' for i in range(3)}
    assert load_prompt(Path(whole.work_dir) / 'iter_2.pth').teacher == whole.load_from

    # As if the run had died after two iterations; load_from still names the teacher.
    for name in ('iter_3.pth', 'iter_4.pth', 'frequency_prompt.pth'):
        (Path(whole.work_dir) / name).unlink()
    (Path(whole.work_dir) / 'last_checkpoint').write_text(str(Path(whole.work_dir) / 'iter_2.pth'))
    again = copy.deepcopy(whole)
    again.resume, again.experiment_name = True, 'again'
    runner = Runner.from_cfg(again)
    spy = Spy(runner)
    runner.train()
    assert len(spy.losses) == 2
    teacher = torch.load(whole.load_from)['state_dict']
    assert all(torch.equal(weights(runner.model)[name], value) for name, value in teacher.items())
    if not resumed_loop_walks():
        return  # mmengine's own resume, not tools/train.py: it starts with the first batch
    resumed = load_prompt(Path(whole.work_dir) / 'frequency_prompt.pth').tokens
    for place, wanted in tokens.items():
        torch.testing.assert_close(resumed[place], wanted, rtol=0, atol=0)


@pytest.mark.parametrize(
    ('train_cfg', 'training', 'wanted'),
    [
        (dict(by_epoch=True, max_epochs=8), 16, 100),
        (dict(by_epoch=True, max_epochs=400), 800, 160),
        (dict(by_epoch=False, max_iters=90_000), 90_000, 2000),
    ],
)
def test_stage_1_takes_its_length_from_the_training_of_the_config(stage1, monkeypatch, train_cfg, training, wanted):
    said = []
    monkeypatch.setattr('freekd_mm.stage1.hook.say', said.append)
    cfg = stage1(max_iters=None)
    cfg.train_cfg = train_cfg
    runner = Runner.from_cfg(cfg)
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    runner.call_hook('before_run')
    assert runner.max_iters == wanted
    assert runner.train_loop.max_iters == wanted
    assert f'train for {wanted} iterations (the config trains for {training})' in said[-1]


def test_resuming_with_nothing_there_starts_from_the_teacher(stage1):
    cfg = stage1(max_iters=1)
    cfg.resume = True
    runner = Runner.from_cfg(cfg)
    spy = Spy(runner)
    runner.train()
    assert len(spy.losses) == 1
    teacher = torch.load(cfg.load_from)['state_dict']
    assert torch.equal(runner.model.state_dict()['backbone.conv1.weight'], teacher['backbone.conv1.weight'])


def test_the_prompted_teacher_starts_as_the_teacher_and_gets_no_worse(stage1):
    """On one batch the task loss of the prompted teacher ends no higher than it started."""
    cfg = stage1(max_iters=20, weight=0.02, optimizer=dict(type='Adam', lr=0.05))
    cfg.train_dataloader.sampler = dict(type='InfiniteSampler', shuffle=False)
    cfg.train_dataloader.dataset.indices = 4
    runner = Runner.from_cfg(cfg)
    spy = Spy(runner)
    runner.train()
    assert spy.losses[-1]['prompt/task'] <= spy.losses[0]['prompt/task'] * 1.001
    model = runner.model
    batch = model.data_preprocessor(next(iter(runner.train_dataloader)), True)
    model.load_state_dict(torch.load(cfg.load_from)['state_dict'], strict=False)
    fresh = MODELS.build({**cfg.model, '_scope_': 'mmdet'})
    fresh.load_state_dict(torch.load(cfg.load_from)['state_dict'])
    for prompt in model.frequency_prompt.prompts.values():
        prompt.mask_token.data = prompt._start(len(prompt.mask_token))
    with torch.no_grad():
        prompted = model.eval().extract_feat(batch['inputs'])
        plain = fresh.eval().extract_feat(batch['inputs'])
    for own, other in zip_equal(prompted, plain):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-5)


def test_a_segmenter_takes_prompts_behind_one_output_of_its_backbone(stage1, seg_config):
    cfg = stage1('seg', config=seg_config, modules='backbone[3]', grouping='band', num_tokens=3)
    runner = Runner.from_cfg(cfg)
    spy = Spy(runner)
    runner.train()
    assert all(not modes['BatchNorm2d'] and not modes['Dropout2d'] for modes in spy.modes)
    file = load_prompt(Path(cfg.work_dir) / 'frequency_prompt.pth')
    assert {place: tuple(tokens.shape) for place, tokens in file.tokens.items()} == {'backbone[3]': (10, 3, 64)}
    assert spy.losses[-1]['loss'] < spy.losses[0]['loss']
    masks = hook_of(runner).bank.places[0][2].masks(torch.randn(1, 64, 8, 8)).low
    for first, second in itertools.combinations(range(3), 2):
        assert (masks[:, first] - masks[:, second]).abs().mean() > 1e-3


@pytest.mark.parametrize('mode', ['paper', 'selective'])
def test_stage_1_ends_with_how_selective_the_prompt_is_and_warns_of_a_flat_one(stage1, mode):
    cfg = stage1(max_iters=3, mode=mode)
    teacher = torch.load(cfg.load_from)['state_dict']
    runner = Runner.from_cfg(cfg)
    runner.train()
    said = next(Path(cfg.work_dir).glob('*/*.log')).read_text()
    assert 'at edges / elsewhere' in said
    assert 'task loss on these' in said
    assert ('the weight is flat' in said) == (mode == 'paper')
    file = load_prompt(Path(cfg.work_dir) / 'frequency_prompt.pth')
    assert file.measured == hook_of(runner).measured
    assert set(file.measured['bands']) == set(file.tokens)
    bands = [band for bands in file.measured['bands'].values() for name, band in bands.items() if name != LOW]
    assert all((band['spread'] < 0.1) == (mode == 'paper') for band in bands)
    assert all(loss > 0 for loss in file.measured['task_loss'])
    assert all(torch.equal(weights(runner.model)[name], value) for name, value in teacher.items()), 'batch norms too'


def test_epochs_averages_and_mixed_precision_of_the_config_are_taken_care_of(stage1, monkeypatch):
    monkeypatch.setattr(amp_optimizer_wrapper, 'is_cuda_available', lambda: True)  # mmengine's check, for a CPU
    cfg = stage1(max_iters=2)
    cfg.custom_hooks.append(dict(type='EMAHook'))
    cfg.optim_wrapper = dict(type='AmpOptimWrapper', dtype='bfloat16', optimizer=dict(type='SGD', lr=0.1))
    cfg.param_scheduler = [dict(type='MultiStepLR', milestones=[1], by_epoch=True)]
    runner = Runner.from_cfg(cfg)
    spy = Spy(runner)
    runner.train()
    assert type(runner.optim_wrapper).__name__ == 'AmpOptimWrapper'
    assert not any(type(hook).__name__ == 'EMAHook' for hook in runner.hooks)
    assert len(spy.losses) == 2


def test_a_teacher_that_names_its_own_checkpoint_is_enough(stage1, tmp_path):
    cfg = stage1(max_iters=1)
    cfg.model.init_cfg = dict(type='Pretrained', checkpoint=cfg.load_from)
    teacher, cfg.load_from = cfg.load_from, None
    Runner.from_cfg(cfg).train()
    assert load_prompt(Path(cfg.work_dir) / 'frequency_prompt.pth').teacher_sha256 == sha256(teacher)


@pytest.mark.parametrize(
    ('options', 'error', 'message'),
    [
        (dict(load_from=None), ValueError, 'RetinaNet should be trained, but the config names no checkpoint: set load'),
        (dict(modules='nek'), ValueError, "'nek' should be a module of the teacher.*Did you mean 'neck'"),
        (
            dict(modules='bbox_head'),
            TypeError,
            "'bbox_head' should give feature maps .* is a list",
        ),
        (dict(modules='neck.lateral_convs.0[0]'), ValueError, r"convs\.0\[0\]' does not fit: .* a Tensor; leave"),
        (dict(modules='neck[7]'), ValueError, r"tap 'neck\[7\]' does not fit: .* 3 items"),
        (dict(modules='bbox_head.retina_cls'), ValueError, 'should run once in the forward pass.* but ran 3 times'),
        (dict(num_tokens=0), ValueError, 'num_tokens should be greater than 0'),
        (dict(max_iters=0), ValueError, 'max_iters should be greater than 0'),
        (dict(num_token=3), ValueError, "FrequencyPromptHook has no option 'num_token'.*Did you mean 'num_tokens'"),
        (dict(grouping='lvel'), ValueError, "Did you mean 'level'"),
        (dict(load_from='none.pth'), FileNotFoundError, 'none.pth'),
    ],
)
def test_wrong_use_is_named(stage1, options, error, message):
    cfg = stage1(**options)
    with pytest.raises(error, match=message):
        Runner.from_cfg(cfg).train()


@pytest.mark.parametrize('kind', ['student', 'encoder'])
def test_a_model_without_losses_of_its_own_is_refused(stage1, kind):
    cfg = stage1(load_from=None, allow_random_teacher=True)
    if kind == 'student':
        loss = dict(type='freekd_mm.FeatureMSELoss')
        teacher = dict(model=cfg.model, allow_random=True)
        parts = dict(architecture=cfg.model, teacher=teacher, distill=dict(mse=dict(student='neck', loss=loss)))
        cfg.model = dict(type='freekd_mm.DistilledModel', **parts)
    else:
        cfg.model = dict(type='freekd_mm.FeatureEncoder', backbone=cfg.model.backbone, neck=cfg.model.neck)
    name = 'DistilledRetinaNet' if kind == 'student' else 'FeatureEncoder'
    with pytest.raises(TypeError, match=f'should be in the training config of a teacher .* model is {name}'):
        Runner.from_cfg(cfg).train()


def test_a_checkpoint_of_another_model_is_refused(stage1, det_config, tmp_path):
    cfg = stage1()
    cfg.load_from = write_teacher(Config.fromfile(det_config('wide', width=16)), tmp_path / 'wide.pth')
    with pytest.raises(RuntimeError, match='should fit RetinaNet, but only'):
        Runner.from_cfg(cfg).train()


def test_a_random_teacher_is_only_for_those_who_ask(stage1):
    cfg = stage1(load_from=None, allow_random_teacher=True, max_iters=1)
    Runner.from_cfg(cfg).train()
    assert load_prompt(Path(cfg.work_dir) / 'frequency_prompt.pth').teacher == ''


def test_the_hook_is_found_by_name_alone():
    assert HOOKS.get('FrequencyPromptHook') is FrequencyPromptHook
    assert ROOT_HOOKS.get('freekd_mm.FrequencyPromptHook') is FrequencyPromptHook


class Look(Hook):
    """Keeps what a process of several sees and trains."""

    priority = 'VERY_LOW'

    def __init__(self):
        self.seen = {'images': []}

    @staticmethod
    def tokens(runner):
        return {name: p.detach().clone() for name, p in runner.model.module.named_parameters() if p.requires_grad}

    def before_train(self, runner):
        self.seen['bytes_in_buckets'] = runner.model._get_ddp_logging_data()['total_parameter_size_bytes']
        self.seen['start'] = self.tokens(runner)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.seen['images'] += [sample.img_id for sample in data_batch['data_samples']]

    def after_train(self, runner):
        self.seen['tokens'] = self.tokens(runner)


def test_two_processes_train_one_prompt(stage1, tmp_path):
    """DDP's buckets hold the tokens alone, both ranks end with the same ones, one file is written."""
    cfg = stage1('ddp', max_iters=3)
    cfg.launcher = 'pytorch'
    cfg.env_cfg.dist_cfg = dict(backend='gloo')
    cfg.model_wrapper_cfg = dict(type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False)

    def train():
        if not torch.cuda.is_available():
            torch.cuda.set_device = lambda device: None  # mmengine sets it without asking
        runner, look = Runner.from_cfg(cfg), Look()
        runner.register_hook(look)
        runner.train()
        torch.save(look.seen, tmp_path / f'rank{get_rank()}.pt')

    for status, output in processes(tmp_path, train):
        assert status == 0, output
    ranks = [torch.load(tmp_path / f'rank{rank}.pt') for rank in range(2)]
    for name, tokens in ranks[0]['tokens'].items():
        assert torch.equal(tokens, ranks[1]['tokens'][name])
    assert sorted(ranks[0]['tokens']) == [f'frequency_prompt.prompts.neck__{i}.mask_token' for i in range(3)]
    assert ranks[0]['bytes_in_buckets'] == sum(4 * tokens.numel() for tokens in ranks[0]['tokens'].values())
    assert ranks[0]['images'] != ranks[1]['images'], 'each rank sees images of its own'
    assert all(not torch.equal(tokens, ranks[0]['start'][name]) for name, tokens in ranks[0]['tokens'].items())
    assert all(torch.equal(tokens, ranks[1]['start'][name]) for name, tokens in ranks[0]['start'].items())
    file = load_prompt(Path(cfg.work_dir) / 'frequency_prompt.pth')
    assert torch.equal(file.tokens['neck[2]'], ranks[0]['tokens']['frequency_prompt.prompts.neck__2.mask_token'])
