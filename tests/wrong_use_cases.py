"""What users get wrong: what they do, the type of the error, and its text."""

from __future__ import annotations

import argparse
import json
import os

import tiny_configs
import torch
from distill_cases import distilled, images
from mmengine.config import Config, ConfigDict
from mmengine.registry import HOOKS, MODELS
from toy_runs import ToyModel, toy_config, toy_run

from freekd_mm.checkpoints.loading import UntrustedCheckpointError
from freekd_mm.engine.preflight import check_config, check_data
from freekd_mm.engine.training import ensure_prompt, run
from freekd_mm.prompts import PromptFile, load_prompt, save_prompt
from freekd_mm.runtime.config import build_model
from freekd_mm.wizard.methods import Wiring, method_entries, parse_methods

MSE = {'type': 'freekd_mm.FeatureMSELoss'}


class Place:
    """Files of a user: a teacher that fits, and others that do not."""

    def __init__(self, folder):
        self.folder = folder
        self.teacher = self.save('teacher.pth', width=8)
        self.student = self.save('student.pth', width=4)

    def save(self, name, width, meta=None):
        torch.save({'state_dict': ToyModel(width=width).state_dict(), 'meta': meta or {}}, self.folder / name)
        return str(self.folder / name)

    def write(self, name, content):
        if isinstance(content, str):
            (self.folder / name).write_text(content)
        else:
            torch.save(content, self.folder / name)
        return str(self.folder / name)

    def prompt(self, channels=8, tokens=2, sha='', **options):
        file = PromptFile({'backbone[0]': torch.zeros(4, tokens, channels)}, num_tokens=tokens, **options)
        file.teacher, file.teacher_sha256 = 'other.pth', sha
        return str(save_prompt(file, self.folder / 'prompt.pth'))


def model(place, teacher=None, distill=None, **options):
    """Builds a toy student that learns from a toy teacher of twice the width."""
    entry = {'student': 'backbone', 'loss': MSE}
    config = {
        'type': 'freekd_mm.DistilledModel',
        'architecture': {'type': 'ToyModel', 'width': 4},
        'teacher': {'model': {'type': 'ToyModel', 'width': 8}, 'checkpoint': place.teacher},
        'distill': {'test': entry},
        'probe_size': (8, 8),
    }
    if teacher is not None:
        config['teacher'] = teacher
    if distill is not None:
        config['distill'] = distill
    return MODELS.build(ConfigDict({**config, **options}))


def entry(place, **options):
    """Builds it with other options of the entry; None takes one away."""
    options = {'student': 'backbone', 'loss': MSE, **options}
    return model(place, distill={'test': {key: value for key, value in options.items() if value is not None}})


def teacher(place, **options):
    """Builds it with other options of the teacher; None takes one away."""
    options = {'model': {'type': 'ToyModel', 'width': 8}, 'checkpoint': place.teacher, **options}
    return model(place, teacher={key: value for key, value in options.items() if value is not None})


def loss(place, **options):
    """Builds it with a FreeKD loss."""
    return entry(place, loss={'type': 'freekd_mm.FreeKDLoss', 'channels': 8, **options})


def train(place, **changes):
    """Trains a toy config with other settings, as the tool does."""
    toy_run(toy_config(place.folder, **changes))


def data(place, categories=None, **options):
    """Checks a detector's config whose data set, of one image, has other options."""
    config = tiny_configs.detector(place.folder)['train_dataloader']
    for folder in ('annotations', 'train2017'):
        (place.folder / folder).mkdir(exist_ok=True)
    coco = {
        'images': [{'id': 1, 'file_name': 'a.png', 'width': 64, 'height': 64}],
        'annotations': [{'id': 1, 'image_id': 1, 'category_id': 1, 'bbox': [0, 0, 40, 40], 'area': 1600, 'iscrowd': 0}],
        'categories': categories
        or [{'id': id, 'name': name} for id, name in enumerate(config['dataset']['metainfo']['classes'], 1)],
    }
    place.write('annotations/instances_train2017.json', json.dumps(coco))
    config['dataset'].update(options)
    check_data(Config({'default_scope': 'mmdet', 'train_dataloader': config}))


def detector(place, **options):
    """Builds a tiny detector that learns from another one."""
    student, other = tiny_configs.detector(place.folder), tiny_configs.detector(place.folder, **options)
    weights = {'model': other['model'], 'allow_random': True}
    config = distilled(student, weights, {'test': {'student': 'neck', 'loss': MSE}})
    return build_model(ConfigDict(config['model']), 'mmdet')


def frozen(place):
    """Taps a stage that gets no gradient."""
    built = entry(place)
    built.backbone.requires_grad_(False)
    built.loss(images(size=(8, 8)), [])


def tools(place, config=None, *options):
    from freekd_mm.cli import add_common_options, prepare_config

    parser = argparse.ArgumentParser()
    add_common_options(parser)
    prepare_config(parser.parse_args([config or str(place.folder / 'confg.py'), *options]))


def classes(place, tap):
    """Trains with a teacher of other classes; toy data have one class, 'toy'."""
    checkpoint = place.save('other.pth', width=4, meta={'dataset_meta': {'classes': ('cat', 'toy')}})
    kind = {'type': 'freekd_mm.FiGKDLoss'} if tap == 'head' else MSE
    model = {
        'type': 'freekd_mm.DistilledModel',
        'architecture': {'type': 'TwoClasses'},
        'teacher': {'model': {'type': 'TwoClasses'}, 'checkpoint': checkpoint, 'allow_mismatch': True},
        'distill': {'test': {'student': tap, 'loss': kind}},
        'probe_size': (8, 8),
    }
    torch.save(
        {'state_dict': TwoClasses().state_dict(), 'meta': {'dataset_meta': {'classes': ('cat', 'toy')}}}, checkpoint
    )
    train(place, model=model)


@MODELS.register_module(force=True)
class TwoClasses(ToyModel):
    """Its head scores two classes."""

    def __init__(self, data_preprocessor=None):
        super().__init__(data_preprocessor=data_preprocessor)
        self.head = torch.nn.Conv2d(4, 2, 1)


class Code:
    def __reduce__(self):
        return (os.system, ('true',))


# What is done, the type of the error, and words of its text, in order, with anything between them.
CASES = {
    # misspelt
    'model option': (
        lambda p: check_config(Config({'model': {'type': 'freekd_mm.DistilledModel', 'distil': {}}})),
        ValueError,
        "model (DistilledModel) has no option 'distil'; available: architecture, teacher|Did you mean 'distill'?",
    ),
    'entry option': (
        lambda p: entry(p, conector={}),
        ValueError,
        "distill 'test' has no option 'conector'; available: student, teacher, of, loss, connector, weight, through. "
        "Did you mean 'connector'?",
    ),
    'teacher option': (
        lambda p: teacher(p, checkpont='x'),
        ValueError,
        "teacher has no option 'checkpont'; available: name, cfg_path, model, checkpoint|Did you mean 'checkpoint'?",
    ),
    'loss type': (
        lambda p: entry(p, loss={'type': 'freekd_mm.FreeKDLos'}),
        ValueError,
        "type of loss of distill 'test' should be a registered name, but got 'freekd_mm.FreeKDLos'. Did you mean "
        "'freekd_mm.FreeKDLoss'?",
    ),
    'loss type without scope': (
        lambda p: entry(p, loss={'type': 'FeatureMSELoss'}),
        ValueError,
        "but got 'FeatureMSELoss'. Did you mean 'freekd_mm.FeatureMSELoss'?",
    ),
    'loss option': (
        lambda p: loss(p, min_position=4),
        ValueError,
        "loss of distill 'test' (FreeKDLoss) has no option 'min_position'; available: |Did you mean 'min_positions'?",
    ),
    'option of a loss of mmrazor': (
        lambda p: entry(p, loss={'type': 'mmrazor.PKDLoss', 'weight': 1.0}),
        ValueError,
        "loss of distill 'test' (PKDLoss) has no option 'weight'; available: loss_weight|Did you mean 'loss_weight'?",
    ),
    'connector type': (
        lambda p: entry(p, connector={'type': 'freekd_mm.FAMConector'}),
        ValueError,
        "type of connector of distill 'test' should be|Did you mean 'freekd_mm.FAMConnector'?",
    ),
    'connector option': (
        lambda p: entry(p, connector={'type': 'freekd_mm.FAMConnector', 'in_channel': 4, 'out_channels': 8}),
        ValueError,
        "connector of distill 'test' (FAMConnector) has no option 'in_channel'|Did you mean 'in_channels'?",
    ),
    'choice of a loss': (
        lambda p: loss(p, mode='papr'),
        ValueError,
        "mode should be one of 'paper', 'code', but got 'papr'. Did you mean 'paper'?",
    ),
    'transform': (
        lambda p: entry(p, loss={'type': 'freekd_mm.DCTAttentionLoss', 'transform': 'dtc'}),
        ValueError,
        "transform should be one of 'dct', 'fft_real', 'fft_abs', but got 'dtc'. Did you mean 'dct'?",
    ),
    'dtype of the teacher': (
        lambda p: teacher(p, dtype='pf16'),
        ValueError,
        "teacher dtype should be one of 'fp32', 'bf16', 'fp16', but got 'pf16'. Did you mean",
    ),
    'method': (lambda p: parse_methods('frekd'), ValueError, "method should be one of |but got 'frekd'. Did you mean"),
    'hook': (
        lambda p: train(p, custom_hooks=[{'type': 'freekd_mm.DistilScheduleHook'}]),
        ValueError,
        "type of hook of custom_hooks should be a registered name, but got 'freekd_mm.DistilScheduleHook'. Did you "
        "mean 'freekd_mm.DistillScheduleHook'?",
    ),
    'hook option': (
        lambda p: train(p, custom_hooks=[{'type': 'freekd_mm.DistillScheduleHook', 'warm_up': 0.1}]),
        ValueError,
        "hook of custom_hooks (DistillScheduleHook) has no option 'warm_up'|Did you mean 'warmup'?",
    ),
    'choice of a hook': (
        lambda p: HOOKS.build({'type': 'freekd_mm.DistillScheduleHook', 'decay': 'cosin'}),
        ValueError,
        "decay should be one of 'constant', 'cosine', but got 'cosin'. Did you mean 'cosine'?",
    ),
    'reliability option': (
        lambda p: train(p, reliability={'nonfinit': 'skip'}),
        ValueError,
        "reliability has no option 'nonfinit'; available: nonfinite, patience|Did you mean 'nonfinite'?",
    ),
    'reliability choice': (
        lambda p: train(p, reliability={'nonfinite': 'skp'}),
        ValueError,
        "nonfinite of reliability should be one of 'error', 'skip', 'ignore', but got 'skp'. Did you mean 'skip'?",
    ),
    'reliability that is no dict': (
        lambda p: train(p, reliability=True),
        TypeError,
        'reliability should be a dict, but got True',
    ),
    'reliability that is a word': (
        lambda p: train(p, reliability='off'),
        TypeError,
        "reliability should be a dict, but got 'off'",
    ),
    'reliability switch': (
        lambda p: train(p, reliability={'exact_resume': 'no'}),
        ValueError,
        "exact_resume of reliability should be one of True, False, but got 'no'",
    ),
    'patience that is not used': (
        lambda p: train(p, reliability={'nonfinite': 'ignore', 'patience': -3}),
        ValueError,
        'patience of reliability should be greater than 0, but got -3',
    ),
    'stage 1 option': (
        lambda p: ensure_prompt({'cfg': 'x.py', 'file': 'y.pth'}, Config({})),
        ValueError,
        "frequency_prompt should be a dict of cfg_path and file, but got {'cfg': 'x.py', 'file': 'y.pth'}",
    ),
    # of the wrong kind
    'no entries': (lambda p: model(p, distill={}), ValueError, 'distill should be a dict of named entries|but got {}'),
    'entry without loss': (
        lambda p: entry(p, loss=None),
        TypeError,
        "distill 'test' should be a dict with at least 'loss'",
    ),
    'entry called a loss': (
        lambda p: model(p, distill={'my_loss': {'loss': MSE}}),
        ValueError,
        "should be an identifier without 'loss' in it, but got 'my_loss'",
    ),
    'negative weight': (
        lambda p: entry(p, weight=-1),
        ValueError,
        "weight of distill 'test' should be at least 0, but got -1",
    ),
    'weight in quotes': (
        lambda p: entry(p, weight='1'),
        ValueError,
        "weight of distill 'test' should be a number, 'auto', or 'auto:0.3' for 0.3 times the task's pull, but got '1'",
    ),
    'no wavelet levels': (lambda p: loss(p, levels=0), ValueError, 'levels should be greater than 0, but got 0'),
    'loss that is no dict': (
        lambda p: entry(p, loss='mse'),
        TypeError,
        "loss of distill 'test' should be a dict with 'type'",
    ),
    'teacher that is no dict': (
        lambda p: model(p, teacher='t.py'),
        TypeError,
        "teacher should be a dict with |but got 't.py'",
    ),
    'student without losses': (
        lambda p: model(p, architecture={'type': 'mmdet.ResNet', 'depth': 18}),
        TypeError,
        "architecture should be a detector, segmenter or classifier with a 'loss' method, but got ResNet|Encoder",
    ),
    # places
    'tap': (
        lambda p: entry(p, student='neck['),
        ValueError,
        "tap should be like 'neck', 'neck[1:4]' or |but got 'neck['",
    ),
    'no taps': (
        lambda p: entry(p, student=[]),
        ValueError,
        'taps should name at least one module, but got an empty list',
    ),
    'module path': (
        lambda p: entry(p, student='backbon'),
        ValueError,
        "tap 'backbon' should be a module of the student, but ToyModel has no 'backbon'; available: |backbone|Did you "
        "mean 'backbone'?",
    ),
    'module path of the teacher': (
        lambda p: entry(p, teacher='backbone.9'),
        ValueError,
        "tap 'backbone.9' should be a module of the teacher, but 'backbone' has no '9'; available: 0, 1, 2.",
    ),
    'config without a neck': (
        lambda p: entry(p, student='neck', teacher='backbone'),
        ValueError,
        "tap 'neck' should be a module of the student, but ToyModel has no 'neck'; available: |backbone, drop, head",
    ),
    'index': (
        lambda p: entry(p, student='backbone[5]'),
        (ValueError, RuntimeError),
        "tap 'backbone[5]' does not fit: the module returned",
    ),
    'frozen stage': (
        frozen,
        RuntimeError,
        "distill 'test': the student's features at backbone should carry a gradient, but do not",
    ),
    # sizes
    'channels of the loss': (
        lambda p: loss(p, channels=16).loss(images(size=(8, 8)), []),
        ValueError,
        'channels should be those of the teacher, |but got 16 for levels of the shapes (2, 8, 8, 8)',
    ),
    'channels of the connector': (
        lambda p: entry(p, connector={'type': 'freekd_mm.FAMConnector', 'in_channels': 4, 'out_channels': 5}),
        ValueError,
        "connector of distill 'test' should give the teacher's channels [8], but gives [5]",
    ),
    'channels into the connector': (
        lambda p: entry(p, connector={'type': 'freekd_mm.FAMConnector', 'in_channels': 3, 'out_channels': 8}),
        ValueError,
        'FAMConnector: level 0 should be of shape (N, 3, H, W), but got (1, 4, 8, 8)',
    ),
    'number of connectors': (
        lambda p: entry(p, connector=[{'type': 'freekd_mm.FAMConnector', 'in_channels': 4, 'out_channels': 8}] * 2),
        ValueError,
        "connector of distill 'test' should be a list of 1, one per level, but got 2",
    ),
    'number of levels': (
        lambda p: entry(p, student=['backbone', 'backbone.0'], teacher='backbone'),
        ValueError,
        "distill 'test': the student has 2 levels (4x8x8, 4x8x8) and the teacher 1 (8x8x8), and they cannot be "
        'paired by resolution. Choose levels that belong together',
    ),
    'logits of other classes': (
        lambda p: entry(p, student='backbone', loss={'type': 'freekd_mm.FiGKDLoss'}).loss(images(size=(8, 8)), []),
        ValueError,
        "distill 'test': FiGKDLoss cannot compare the student's (2, 4, 8, 8) with the teacher's (2, 8, 8, 8): |: "
        'at level 0 student and teacher should score the same classes with the same anchors',
    ),
    'one class': (
        lambda p: entry(p, loss={'type': 'freekd_mm.FiGKDLoss', 'num_classes': 1}),
        ValueError,
        'num_classes should hold at least 2 classes, but got 1: the logits of one class have no detail',
    ),
    'features that a loss cannot take': (
        lambda p: entry(p, connector=False).loss(images(size=(8, 8)), []),
        ValueError,
        "distill 'test': FeatureMSELoss cannot compare the student's (2, 4, 8, 8) with the teacher's (2, 8, 8, 8)",
    ),
    # files
    'no checkpoint': (
        lambda p: teacher(p, checkpoint=None),
        ValueError,
        "teacher should have a 'checkpoint' (a file or a URL), but got none. |allow_random=True",
    ),
    'checkpoint that is not there': (
        lambda p: teacher(p, checkpoint='/nowhere/t.pth'),
        FileNotFoundError,
        "checkpoint should be an existing file, but got '/nowhere/t.pth'",
    ),
    'checkpoint of another model': (
        lambda p: teacher(p, checkpoint=p.save('other.pth', width=16)),
        RuntimeError,
        'should fit ToyModel, but only |% of its |Check that config and checkpoint belong together',
    ),
    'teacher and student swapped': (
        lambda p: teacher(p, checkpoint=p.student),
        RuntimeError,
        'should fit ToyModel, but only |It fits the student: are teacher and student swapped?',
    ),
    'checkpoint without weights': (
        lambda p: teacher(p, checkpoint=p.write('x.pth', {'epoch': 3})),
        ValueError,
        'should hold a state_dict, but holds epoch',
    ),
    'checkpoint with code': (
        lambda p: teacher(p, checkpoint=p.write('x.pth', {'state_dict': Code()})),
        UntrustedCheckpointError,
        'should hold tensors and plain data only|Nothing of it was run',
    ),
    'checkpoint that was cut short': (
        lambda p: teacher(p, checkpoint=p.write('x.pth', 'PK')),
        RuntimeError,
        'x.pth should ',
    ),
    'config and model': (
        lambda p: teacher(p, cfg_path='t.py'),
        ValueError,
        "teacher should have one of 'cfg_path', 'model', 'timm', 'transformers', 'module', but got ",
    ),
    'config that is not there': (
        lambda p: teacher(p, model=None, cfg_path='mmdet/retinanet.py'),
        FileNotFoundError,
        "cfg_path should be a config file or like 'mmdet::retinanet/|but got 'mmdet/retinanet.py'",
    ),
    'config that the package has not': (
        lambda p: teacher(p, model=None, cfg_path='mmdet::retinanet/retinanet_r51.py'),
        FileNotFoundError,
        "'mmdet::retinanet/retinanet_r51.py' should name a config of mmdet, but there is none",
    ),
    'config of a package that is not there': (
        lambda p: teacher(p, model=None, cfg_path='mmnothing::x.py'),
        ImportError,
        "'mmnothing::x.py' needs the package mmnothing, which is not installed: pip install mmnothing",
    ),
    'config without a model': (
        lambda p: teacher(p, model=None, cfg_path=p.write('t.py', 'optimizer = 1\n')),
        ValueError,
        "config should define 'model', but has optimizer",
    ),
    'prompt of another teacher': (
        lambda p: loss(p, prompt=p.prompt(sha='0' * 64)),
        ValueError,
        "distill 'test': the prompt should be made for the teacher |teacher.pth (SHA-256 |but was made for other.pth "
        '(000000000000): train one for this teacher|allow_mismatch=True',
    ),
    'prompt that is not there': (
        lambda p: loss(p, prompt='/nowhere/prompt.pth'),
        FileNotFoundError,
        "prompt should be an existing file, but got '/nowhere/prompt.pth'",
    ),
    'prompt that is none': (
        lambda p: load_prompt(p.teacher),
        ValueError,
        'teacher.pth should be a prompt file of freekd_mm or hold ',
    ),
    'prompt with other levels': (
        lambda p: loss(p, levels=2, prompt=p.prompt()),
        ValueError,
        'levels should be 3, as in the prompt file |prompt.pth, but got 2',
    ),
    'prompt with other channels': (
        lambda p: loss(p, prompt=p.prompt(channels=3)),
        ValueError,
        'channels of level 0 should be 3, as in the prompt of backbone[0] in |prompt.pth, but got 8',
    ),
    'annotations that are not there': (
        lambda p: data(p, ann_file='annotations/instances_train2018.json'),
        FileNotFoundError,
        'ann_file of train_dataloader should be an existing file, but got |instances_train2018.json|available in |'
        "annotations: instances_train2017.json. Did you mean 'instances_train2017.json'?",
    ),
    'categories of one name': (
        lambda p: data(p, [{'id': 1, 'name': 'ball'}, {'id': 2, 'name': 'ball'}], metainfo={'classes': ('ball',)}),
        ValueError,
        'categories of |instances_train2017.json|should have different names, but ball is there more than once',
    ),
    'images that are not there': (
        lambda p: data(p, data_prefix={'img': 'train2071/'}),
        FileNotFoundError,
        "images of train_dataloader should be there, but 1 of 1 |train2071/a.png'|Did you mean 'train2017'?",
    ),
    'data folder that is not there': (
        lambda p: data(p, data_root='/data/coco/'),
        FileNotFoundError,
        "ann_file of train_dataloader should be an existing file, but got '/data/coco/annotations/",
    ),
    'config of the command': (
        lambda p: tools(p),
        FileNotFoundError,
        "config should be an existing file, but got '|confg.py'",
    ),
    'checkpoint to resume': (
        lambda p: toy_run(toy_config(p.folder), resume=str(p.folder / 'teachr.pth')),
        FileNotFoundError,
        "--resume should be an existing file, but got |: student.pth, teacher.pth. Did you mean 'teacher.pth'?",
    ),
    'weights to resume': (
        lambda p: toy_run(toy_config(p.folder), resume=p.teacher),
        ValueError,
        'teacher.pth should be a checkpoint written in training, but has no message_hub',
    ),
    # in combination
    'schedule without distillation': (
        lambda p: train(p, custom_hooks=[{'type': 'freekd_mm.DistillScheduleHook'}]),
        TypeError,
        "DistillScheduleHook should run with model=dict(type='freekd_mm.DistilledModel', ...), but got ToyModel",
    ),
    'entry of a schedule': (
        lambda p: model(p).distillation.entry('tset'),
        ValueError,
        'distill entry should be one of |test|, but got |tset|Did you mean |test|?',
    ),
    'logits of a teacher with other classes': (
        lambda p: classes(p, 'head'),
        ValueError,
        'FiGKDLoss: the classes that student and teacher share should hold at least 2 classes, but got',
    ),
    'mixed precision with another wrapper': (
        lambda p: run(Config(toy_config(p.folder, optim_wrapper={'type': 'ApexOptimWrapper'})), amp=True),
        ValueError,
        '--amp should be used with an OptimWrapper, but the config has ApexOptimWrapper',
    ),
    'learning rate without a base': (
        lambda p: run(Config(toy_config(p.folder)), auto_scale_lr=True),
        ValueError,
        '--auto-scale-lr needs auto_scale_lr = dict(base_batch_size=...), but the config has none',
    ),
    'method twice': (
        lambda p: method_entries('pkd+pkd', Wiring('neck', 'neck', (), (), None, 0, False)),
        ValueError,
        "methods 'pkd+pkd' should not repeat one another, but both have an entry 'pkd'",
    ),
}
