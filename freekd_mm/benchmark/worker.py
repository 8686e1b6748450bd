"""One job in a process of its own: ``python -m freekd_mm.benchmark.worker <folder>``."""

from __future__ import annotations

import json
import sys
import time
import traceback
import uuid
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.hooks import Hook

from freekd_mm.benchmark.images import IMAGES_FILE
from freekd_mm.benchmark.jobs import PROMPT_PREFIX, TEACHER_FILE
from freekd_mm.benchmark.plan import TEACHER
from freekd_mm.files import write_atomically, write_text
from freekd_mm.prompts.prompt_file import PROMPT_FILE
from freekd_mm.registry import HOOKS

CONFIG, JOB, STATUS, RESULT = 'config.py', 'job.json', 'status.json', 'result.json'
SECONDS_BETWEEN_WRITES = 2.0


@HOOKS.register_module()
class BenchmarkStatusHook(Hook):
    """Keeps ``status.json``: how far the run is, how fast, and its metrics so far.

    Args:
        file: The file; a resumed run goes on with its metrics and its time.
        metric: The metric to keep.
    """

    priority = 'LOWEST'

    def __init__(self, file: str, metric: str) -> None:
        self.file, self.metric = Path(file), metric
        before = read_json(self.file) or {}
        self.history: list[list[float]] = before.get('history', [])
        self.before: float = before.get('seconds', 0.0)
        self.start = self.written = time.monotonic()
        self.first: int | None = None

    def before_train(self, runner: Any) -> None:
        """Starts the clock."""
        self.start = time.monotonic()
        self.first = runner.iter

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Writes the file every few seconds."""
        if time.monotonic() - self.written > SECONDS_BETWEEN_WRITES:
            self._write(runner)

    def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        """Keeps the metric, and the share of the training after which it was measured."""
        if metrics and self.metric in metrics:
            self.history.append([runner.iter / runner.max_iters, metrics[self.metric]])
        self._write(runner)

    def after_train(self, runner: Any) -> None:
        """Writes the end of the training."""
        self._write(runner)

    def _write(self, runner: Any) -> None:
        self.written = time.monotonic()
        seconds = self.written - self.start
        done = runner.iter - (self.first or 0)
        content = {
            'iter': runner.iter,
            'max_iters': runner.max_iters,
            'epoch': runner.epoch,
            'seconds': self.before + seconds,
            'eta': seconds / done * (runner.max_iters - runner.iter) if done > 0 else None,
            'history': self.history,
        }
        write_text(self.file, json.dumps(content))


def read_json(file: Path) -> dict[str, Any] | None:
    """Returns the content of a JSON file, None where there is no such file."""
    return json.loads(file.read_text(encoding='utf-8')) if file.is_file() else None


def run_job(folder: Path) -> dict[str, Any]:
    """Trains, evaluates on the data that chooses (val) and on the data that reports (test).

    Args:
        folder: Holds ``config.py`` and ``job.json``; gets the checkpoint, the status and the logs.
    """
    from mmengine.runner import find_latest_checkpoint

    from freekd_mm.engine.training import run

    job = json.loads((folder / JOB).read_text(encoding='utf-8'))
    cfg = Config.fromfile(folder / CONFIG)
    cfg.work_dir = str(folder)
    cfg.experiment_name = f'{job["method"]}-{uuid.uuid4().hex}'
    hook = dict(type='freekd_mm.BenchmarkStatusHook', file=str(folder / STATUS), metric=job['metric'])
    cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), hook]
    # Only the last one counts, and many runs fill a disk.
    cfg.merge_from_dict({'default_hooks.checkpoint.max_keep_ckpts': 1})
    resumed = find_latest_checkpoint(str(folder)) is not None
    cpu = time.process_time()
    run(cfg, resume='auto')
    status = read_json(folder / STATUS) or {}
    result = {
        'train_seconds': round(status.get('seconds', 0.0), 1),
        # Of this process alone: on a busy machine the truer figure. Without the part before a resume.
        'cpu_seconds': round(time.process_time() - cpu, 1),
        'resumed': resumed,
        'history': status.get('history', []),
    }
    if job['method'].startswith(PROMPT_PREFIX):
        if not (folder / PROMPT_FILE).is_file():
            raise RuntimeError(f'stage 1 should have written {folder / PROMPT_FILE}, but did not')
        return result
    checkpoint = find_latest_checkpoint(str(folder))
    if checkpoint is None:
        raise RuntimeError(f'there should be a checkpoint in {folder}, but there is none: see its CheckpointHook')
    for split in ('val', 'test'):
        result[split] = _evaluate(cfg, checkpoint, split)
    if job['method'] == TEACHER:
        _keep_weights(checkpoint, folder / TEACHER_FILE)
    return result


def _evaluate(cfg: Config, checkpoint: str, split: str) -> dict[str, float]:
    from freekd_mm.engine.evaluation import evaluate

    cfg = cfg.copy()
    cfg.test_dataloader, cfg.test_evaluator = cfg[f'{split}_dataloader'], cfg[f'{split}_evaluator']
    cfg.custom_hooks = []
    if split == 'test':
        cfg.custom_hooks = [dict(type='freekd_mm.BenchmarkImagesHook', file=str(Path(cfg.work_dir) / IMAGES_FILE))]
    cfg.experiment_name = f'{split}-{uuid.uuid4().hex}'
    return {key: float(value) for key, value in evaluate(cfg, checkpoint).items()}


def _keep_weights(checkpoint: str, target: Path) -> None:
    import torch

    from freekd_mm.checkpoints.loading import load_checkpoint_file

    state = load_checkpoint_file(checkpoint)['state_dict']
    write_atomically(target, lambda part: torch.save({'state_dict': state}, part))


def main() -> int:
    """Runs the job and leaves ``result.json``, also for a failure."""
    folder = Path(sys.argv[1])
    try:
        result = run_job(folder)
    except Exception as error:
        traceback.print_exc()
        result = {'error': f'{type(error).__name__}: {error}'.splitlines()[0]}
    write_text(folder / RESULT, json.dumps(result))
    return 1 if 'error' in result else 0


if __name__ == '__main__':
    sys.exit(main())
