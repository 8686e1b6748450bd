"""Trainings of a fraction of a second: a toy model and toy data with all that is random in real ones.

Configs name ``custom_imports = dict(imports=['toy_runs'])`` so that the tools can run them in another process.
"""

from __future__ import annotations

import faulthandler
import os
import random
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, HOOKS, METRICS, MODELS
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from freekd_mm.checkpoints.loading import load_checkpoint_file
from freekd_mm.engine.training import run

#: Seconds that a process may take, alone some 10; one that hangs ends with the place where it does in its log.
TIME_LIMIT = 180
PARTS = ('state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers')


@DATASETS.register_module(force=True)
class ToyImages:
    """Small images, changed at random by all three generators whenever one is loaded."""

    metainfo: dict[str, Any] = {'classes': ('toy',)}  # noqa: RUF012

    def __init__(
        self, count: int = 10, bad: tuple[int, ...] = (), empty: tuple[int, ...] = (), pause: float = 0
    ) -> None:
        self.count, self.bad, self.empty, self.pause = count, bad, empty, pause

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        time.sleep(self.pause)
        noise = random.random() + np.random.rand() + torch.rand(3, 8, 8)
        image = torch.full((3, 8, 8), float(index)) + noise
        if index in self.bad:
            image[0, 0, 0] = float('nan')
        sample = BaseDataElement(metainfo={'img_path': f'/data/{index}.png'})
        sample.boxes = torch.rand(0 if index in self.empty else 2, 4)
        return {'inputs': image, 'data_samples': sample}


@MODELS.register_module(force=True)
class ToyModel(BaseModel):
    """A backbone with a norm, dropout, and a loss that needs no labels."""

    def __init__(self, width: int = 4, data_preprocessor: Any = None) -> None:
        super().__init__(data_preprocessor=data_preprocessor or {'type': 'ImgDataPreprocessor'})
        self.backbone = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.drop = nn.Dropout(0.3)
        self.head = nn.Conv2d(width, 1, 1)

    def loss(self, inputs: Tensor, data_samples: Any = None) -> dict[str, Tensor]:
        out = self.head(self.drop(self.backbone(inputs)))
        boxes = sum(len(sample.boxes) for sample in data_samples)
        return {'loss_toy': (out - 1).square().mean() + 0 * boxes}

    def forward(self, inputs: Tensor, data_samples: Any = None, mode: str = 'tensor') -> Any:
        if mode == 'loss':
            return self.loss(inputs, data_samples)
        out = self.head(self.drop(self.backbone(inputs)))
        return list(out.flatten(1).mean(1)) if mode == 'predict' else out


@METRICS.register_module(force=True)
class ToyMetric(BaseMetric):
    """The mean prediction, and a random number: an evaluation that disturbs the training, were it not for seeds."""

    def process(self, data_batch: Any, data_samples: Any) -> None:
        np.random.rand()
        self.results.extend(float(sample) for sample in data_samples)

    def compute_metrics(self, results: list) -> dict[str, float]:
        return {'score': float(np.mean(results))}


class Stop(Exception):  # noqa: N818
    """Ends a run as a failure would."""


@HOOKS.register_module(force=True)
class ToyStop(Hook):
    """Ends a run behind an iteration, or has a signal sent."""

    priority = 'LOWEST'

    def __init__(self, behind: int, point: str = 'train_iter', signal: int | None = None) -> None:
        self.behind, self.point, self.signal = behind, point, signal

    def _stop(self, point: str, iteration: int) -> None:
        if point != self.point or iteration != self.behind:
            return
        if self.signal is None:
            raise Stop
        import signal

        signal.raise_signal(self.signal)

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self._stop('train_iter', runner.iter + 1)

    def after_val_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self._stop('val_iter', runner.iter)

    def before_val_epoch(self, runner: Any) -> None:
        self._stop('val_epoch', runner.iter)


def toy_config(folder: Path, loop: str = 'epochs', workers: int = 0, **changes: Any) -> dict[str, Any]:
    """Returns a config of 12 iterations: four epochs of three batches (the last is smaller), evaluated every second.

    Args:
        folder: The work directory is in it.
        loop: 'epochs', 'iterations' (endless sampler) or 'passes' (iterations, finite sampler).
        workers: Data loading processes.
        **changes: Top-level settings in place of these.
    """
    sampler = {'type': 'InfiniteSampler' if loop == 'iterations' else 'DefaultSampler', 'shuffle': True}
    loader = {
        'batch_size': 4,
        'num_workers': workers,
        'persistent_workers': workers > 0,
        'sampler': sampler,
        'dataset': {'type': 'ToyImages'},
    }
    by_epoch = loop == 'epochs'
    train_cfg = {'type': 'EpochBasedTrainLoop', 'max_epochs': 4, 'val_interval': 2}
    if not by_epoch:
        train_cfg = {'type': 'IterBasedTrainLoop', 'max_iters': 12, 'val_interval': 5}
    val = {
        **loader,
        'num_workers': 0,
        'persistent_workers': False,
        'sampler': {'type': 'DefaultSampler', 'shuffle': False},
    }
    config = {
        'custom_imports': {'imports': ['toy_runs']},
        'work_dir': str(folder / 'work'),
        'experiment_name': f'{folder.name}_{random.SystemRandom().getrandbits(48)}',
        'env_cfg': {},
        'model': {'type': 'ToyModel'},
        'train_dataloader': loader,
        'val_dataloader': val,
        'val_evaluator': {'type': 'ToyMetric'},
        'val_cfg': {},
        'train_cfg': train_cfg,
        'optim_wrapper': {'type': 'OptimWrapper', 'optimizer': {'type': 'AdamW', 'lr': 0.01}},
        'param_scheduler': [{'type': 'LinearLR', 'start_factor': 0.1, 'by_epoch': False, 'begin': 0, 'end': 7}],
        'default_hooks': {
            'checkpoint': {'type': 'CheckpointHook', 'interval': 1 if by_epoch else 3, 'by_epoch': by_epoch},
            'logger': {'type': 'LoggerHook', 'interval': 1},
        },
        'randomness': {'seed': 3},
        'log_level': 'WARNING',
    }
    return {**config, **changes}


def toy_run(config: dict[str, Any], *hooks: dict[str, Any], resume: str | None = None) -> None:
    """Trains a toy config as ``tools/train.py`` does.

    Args:
        config: The config.
        *hooks: Further custom hooks.
        resume: As for the tool.
    """
    name = f'{config["experiment_name"]}_{random.SystemRandom().getrandbits(48)}'
    custom = [*config.get('custom_hooks', []), *hooks]
    run(Config({**config, 'custom_hooks': custom, 'experiment_name': name}), resume=resume)


def in_child(log: Path, action: Callable[[], int | None]) -> int:
    """Runs something in a fork, its output at the end of a file; returns the process id.

    The process ends with the status that is returned or raised, with 1 after an error, and after a time limit.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        # Not pytest's, which writes elsewhere.
        sys.stdout, sys.stderr = os.fdopen(1, 'w', closefd=False), os.fdopen(2, 'w', closefd=False)
        faulthandler.dump_traceback_later(TIME_LIMIT, exit=True)
        status = action() or 0
    except SystemExit as stop:
        status = stop.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def exit_code(status: int) -> int:
    """Returns the exit code, or minus the signal, of ``os.waitpid``; ``os.waitstatus_to_exitcode`` of Python 3.9."""
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def last_state(work_dir: str | Path) -> dict[str, Any]:
    """Returns what has to be the same at the end of two runs, by path."""
    content = load_checkpoint_file((Path(work_dir) / 'last_checkpoint').read_text())
    return {k: v for part in PARTS for k, v in _flatten(content.get(part), part).items()}


def _flatten(value: Any, path: str) -> dict[str, Any]:
    if isinstance(value, dict):
        return {k: v for key, item in value.items() for k, v in _flatten(item, f'{path}/{key}').items()}
    if isinstance(value, (list, tuple)):
        return {k: v for index, item in enumerate(value) for k, v in _flatten(item, f'{path}/{index}').items()}
    return {path: value}


def changed(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """Returns the paths at which two states differ, bit for bit."""

    def same(a: Any, b: Any) -> bool:
        if torch.is_tensor(a) and torch.is_tensor(b):
            return a.dtype == b.dtype and torch.equal(a, b)
        return type(a) is type(b) and a == b

    keys = sorted(first.keys() | second.keys())
    return [key for key in keys if key not in first or key not in second or not same(first[key], second[key])]
