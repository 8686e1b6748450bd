"""Kills trainings with SIGKILL, resumes them, and compares what they end with, bit for bit.

python tests/kill_and_resume.py --kills 30

Half of the kills come at a random moment, the others while a checkpoint is being written. After each of them every
visible checkpoint has to load and the pointer has to name one. Trainings start over until all kills are spent; each
has to end with exactly the weights, optimizer, schedules and averages of a training that was not disturbed.

Everything is imported once; each training is a fork of this process.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault('OMP_NUM_THREADS', '1')
sys.path.append(str(Path(__file__).parents[1] / 'tools'))
sys.path.insert(0, str(Path(__file__).with_name('quick')))

import cv2
import mmdet.utils
import mmseg.utils
import tiny_configs
import torch
from distill_cases import distilled, save_weights
from mmengine.config import Config
from mmengine.registry import MODELS
from scenes import write_scenes
from toy_runs import exit_code, in_child

from freekd_mm.checkpoints.loading import load_checkpoint_file
from freekd_mm.compat import install
from freekd_mm.engine.training import run

FLIP = {'type': 'RandomFlip', 'prob': 0.5}
MGD = {'type': 'mmrazor.MGDLoss', 'alpha_mgd': 1e-3}
#: What has to be the same in the end.
PARTS = ('state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers', 'frequency_prompt')


def epochs(root: Path, folder: Path, workers: int) -> dict[str, Any]:
    """Returns a detector's config: epochs, random masks, a prompt, schedules of three kinds, a moving average."""
    from freekd_mm.prompts import PromptFile, save_prompt

    config = tiny_configs.detector(root)
    teacher = tiny_configs.detector(root, head='gfl', width=16, channels=24)['model']
    weights = save_weights(teacher, folder / 'detector_teacher.pth')
    generator = torch.Generator().manual_seed(0)
    tokens = {f'neck[{level}]': torch.randn(4, 2, 24, generator=generator) for level in range(3)}
    prompt = save_prompt(PromptFile(tokens), folder / 'prompt.pth')
    freekd = {'type': 'freekd_mm.FreeKDLoss', 'channels': 24, 'prompt': str(prompt)}
    connector = {'type': 'mmrazor.MGDConnector', 'student_channels': 16, 'teacher_channels': 24}
    entries = {'freekd': {'loss': freekd}, 'mgd': {'connector': connector, 'loss': MGD}}
    config = distilled(config, {'model': teacher, 'checkpoint': str(weights)}, entries)
    config['train_cfg'] = {'type': 'EpochBasedTrainLoop', 'max_epochs': 3, 'val_interval': 1}
    config['param_scheduler'] = [
        {'type': 'LinearLR', 'start_factor': 0.1, 'by_epoch': False, 'begin': 0, 'end': 5},
        {'type': 'MultiStepLR', 'milestones': [2]},
        {'type': 'ReduceOnPlateauLR', 'monitor': 'coco/bbox_mAP', 'rule': 'greater', 'patience': 0},
    ]
    config['custom_hooks'] = [
        {'type': 'EMAHook', 'momentum': 0.1},
        {'type': 'freekd_mm.DistillScheduleHook', 'warmup': 0.25, 'decay': 'cosine'},
    ]
    config['default_hooks'] = {
        'checkpoint': {'type': 'CheckpointHook', 'max_keep_ckpts': 1, 'save_best': 'coco/bbox_mAP'}
    }
    config['optim_wrapper']['clip_grad'] = {'max_norm': 10}
    return _loading(config, workers)


def iterations(root: Path, folder: Path, workers: int) -> dict[str, Any]:
    """Returns a segmenter's config: iterations, dropout, AdamW, polynomial schedule."""
    config = tiny_configs.segmenter(root)
    teacher = tiny_configs.segmenter(root, width=16)['model']
    weights = save_weights(teacher, folder / 'segmenter_teacher.pth', 'mmseg')
    connector = {'type': 'mmrazor.MGDConnector', 'student_channels': 64, 'teacher_channels': 128}
    entries = {
        'mgd': {'student': 'backbone[3]', 'connector': connector, 'loss': MGD},
        'figkd': {'student': 'decode_head', 'loss': {'type': 'freekd_mm.FiGKDLoss'}},
    }
    config = distilled(config, {'model': teacher, 'checkpoint': str(weights)}, entries)
    config['train_cfg'] = {'type': 'IterBasedTrainLoop', 'max_iters': 10, 'val_interval': 5}
    config['param_scheduler'] = [{'type': 'PolyLR', 'by_epoch': False, 'begin': 0, 'end': 10}]
    config['default_hooks'] = {
        'checkpoint': {'type': 'CheckpointHook', 'by_epoch': False, 'interval': 3, 'max_keep_ckpts': 2}
    }
    config['optim_wrapper'] = {'type': 'OptimWrapper', 'optimizer': {'type': 'AdamW', 'lr': 1e-3}}
    return _loading(config, workers)


def prompt(root: Path, folder: Path, workers: int) -> dict[str, Any]:
    """Returns a config of stage 1 of FreeKD: the prompt alone is trained."""
    config = tiny_configs.detector(root)
    config['load_from'] = str(save_weights(config['model'], folder / 'prompted.pth'))
    config['custom_hooks'] = [{'type': 'freekd_mm.FrequencyPromptHook', 'max_iters': 8, 'probe_size': (64, 64)}]
    return _loading(config, workers)


CASES: dict[str, Callable[[Path, Path, int], dict[str, Any]]] = {
    'epochs': epochs,
    'iterations': iterations,
    'prompt': prompt,
}


def _loading(config: dict[str, Any], workers: int) -> dict[str, Any]:
    loader = config['train_dataloader']
    loader['dataset']['pipeline'].insert(-1, FLIP)
    loader.update({'batch_size': 2, 'num_workers': workers, 'persistent_workers': workers > 0})
    return config


def import_packages() -> None:
    """Imports what all trainings need, before they are forked."""
    install()
    for package in (mmdet, mmseg):
        package.utils.register_all_modules(init_default_scope=False)
    for name in ('mmrazor.MGDLoss', 'freekd_mm.FreeKDLoss', 'freekd_mm.FiGKDLoss', 'freekd_mm.DistilledModel'):
        MODELS.get(name)


@dataclass
class Tally:
    """What happened so far."""

    kills: int = 0
    while_writing: int = 0
    trainings: int = 0
    problems: list[str] = field(default_factory=list)


def train(config: Path, work_dir: Path, slow_disk: bool) -> None:
    """Trains, or goes on; with a slow disk half of the time is spent on writing, as with checkpoints of gigabytes."""
    torch.set_num_threads(1)
    cfg = Config.fromfile(config)
    cfg.work_dir = str(work_dir)
    if slow_disk:
        fsync = os.fsync
        os.fsync = lambda descriptor: (time.sleep(0.05), fsync(descriptor))[1]  # type: ignore[assignment]
    run(cfg, resume='auto')


def check_files(work_dir: Path, tally: Tally) -> None:
    """Every checkpoint that can be seen is whole, and the pointer names one."""
    for path in work_dir.glob('*.pth'):
        try:
            load_checkpoint_file(path)
        except Exception as error:
            tally.problems.append(f'{path}: {error}')
    pointer = work_dir / 'last_checkpoint'
    if pointer.exists() and not Path(pointer.read_text()).is_file():
        tally.problems.append(f'{pointer} names {pointer.read_text()!r}, which is not there')


def is_writing(work_dir: Path) -> bool:
    """Whether half of a checkpoint is there."""
    return any(path.name.endswith('.part') and '.pth.' in path.name for path in work_dir.glob('.*'))


def kill(child: int, work_dir: Path, seconds: float, writing: bool, tally: Tally) -> int | None:
    """Kills a training at a moment; returns its status if it ended before."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline or writing:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return exit_code(status)
        if writing and time.monotonic() >= deadline and is_writing(work_dir):
            break
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    tally.kills += 1
    tally.while_writing += is_writing(work_dir)
    check_files(work_dir, tally)
    return None


def flatten(value: Any, path: str = '') -> dict[str, Any]:
    """Returns everything in nested containers, by path."""
    if isinstance(value, dict):
        return {k: v for key, item in value.items() for k, v in flatten(item, f'{path}/{key}').items()}
    if isinstance(value, (list, tuple)):
        return {k: v for index, item in enumerate(value) for k, v in flatten(item, f'{path}/{index}').items()}
    return {path: value}


def differences(first: dict, second: dict) -> list[str]:
    """Returns what is not the same in two checkpoints."""
    ours, theirs = (
        {k: v for part in PARTS for k, v in flatten(file.get(part), part).items()} for file in (first, second)
    )
    return [
        key
        for key in sorted(ours.keys() | theirs.keys())
        if key not in ours or key not in theirs or not _same(ours[key], theirs[key])
    ]


def _same(first: Any, second: Any) -> bool:
    if torch.is_tensor(first) and torch.is_tensor(second):
        return first.dtype == second.dtype and torch.equal(first, second)
    return type(first) is type(second) and first == second


def last_file(work_dir: Path) -> dict:
    """Returns the content of the last checkpoint."""
    return load_checkpoint_file((work_dir / 'last_checkpoint').read_text())


def wait(child: int, log: Path) -> None:
    """Waits for a training that nobody kills."""
    status = exit_code(os.waitpid(child, 0)[1])
    if status:
        raise SystemExit(f'the training ended with status {status}; see the end of {log}:\n{log.read_text()[-3000:]}')


def torture(name: str, folder: Path, kills: int, workers: int, rng: random.Random, before: int = 0) -> Tally:
    """Kills trainings of one config until the kills are spent; every other one waits for a checkpoint to be written.

    ``before`` counts the kills of earlier configs.
    """
    config = folder / 'config.py'
    log = folder / 'log.txt'
    wait(in_child(log, lambda: _prepare(name, folder, workers)), log)
    start = time.monotonic()
    wait(in_child(log, lambda: train(config, folder / 'undisturbed', slow_disk=True)), log)
    seconds = time.monotonic() - start
    tally, reference = Tally(), last_file(folder / 'undisturbed')
    while tally.kills < kills or tally.trainings == 0:
        tally.trainings += 1
        work_dir = folder / f'killed_{tally.trainings}'
        status = None
        while status is None:
            child = in_child(log, lambda work_dir=work_dir: train(config, work_dir, slow_disk=True))  # type: ignore[misc]
            if tally.kills < kills:
                writing = (before + tally.kills) % 2 == 1
                moment = rng.uniform(0, seconds * (0.5 if writing else 1))
                status = kill(child, work_dir, moment, writing, tally)
            else:
                wait(child, log)
                status = 0
        if status:
            tally.problems.append(f'{work_dir} did not resume: status {status}; {log.read_text()[-3000:]}')
            continue
        changed = differences(reference, last_file(work_dir))
        if changed:
            tally.problems.append(f'{work_dir}: {len(changed)} values differ, first {changed[:5]}')
    return tally


def _prepare(name: str, folder: Path, workers: int) -> None:
    cv2.setNumThreads(0)
    root = write_scenes(folder / 'scenes', num_train=8, num_val=2, size=64, seed=0)
    tiny_configs.write(folder / 'config.py', CASES[name](root, folder, workers))


def main() -> None:
    """Runs all cases and prints the tally."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--kills', type=int, default=30, help='in all (default: %(default)s)')
    parser.add_argument('--cases', nargs='+', choices=CASES, default=list(CASES))
    parser.add_argument('--workers', type=int, nargs='+', default=[0, 2], help='data loading processes, in turn')
    parser.add_argument('--seed', type=int, default=0, help='seed of the moments')
    parser.add_argument('--keep', action='store_true', help='keep the folder of the trainings')
    args = parser.parse_args()
    import_packages()
    rng = random.Random(args.seed)
    folder = Path(tempfile.mkdtemp(prefix='kill_and_resume_'))
    total = Tally()
    for index, name in enumerate(args.cases):
        kills = args.kills // len(args.cases) + (index < args.kills % len(args.cases))
        workers = args.workers[index % len(args.workers)]
        place = folder / name
        place.mkdir()
        start = time.monotonic()
        tally = torture(name, place, kills, workers, rng, total.kills)
        print(
            f'{name}, {workers} workers: {tally.kills} kills, {tally.while_writing} of them while a checkpoint was '
            f'written; {tally.trainings} trainings, {len(tally.problems)} problems, {time.monotonic() - start:.0f} s',
            flush=True,
        )
        for attribute in ('kills', 'while_writing', 'trainings', 'problems'):
            setattr(total, attribute, getattr(total, attribute) + getattr(tally, attribute))
    for problem in total.problems:
        print(f'PROBLEM {problem}')
    if not args.keep:
        shutil.rmtree(folder)
    print(
        f'survived {total.kills} kills ({total.while_writing} while writing) in {total.trainings} trainings: '
        + ('all ended bit for bit as undisturbed' if not total.problems else f'{len(total.problems)} problems')
    )
    sys.exit(bool(total.problems))


if __name__ == '__main__':
    main()
