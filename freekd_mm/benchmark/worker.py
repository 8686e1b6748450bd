"""One job in its own process: ``python -m freekd_mm.benchmark.worker <folder>``."""

from __future__ import annotations

import json
import sys
import time
import traceback
import uuid
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.runner import find_latest_checkpoint

from freekd_mm.benchmark.images import IMAGES_FILE
from freekd_mm.benchmark.jobs import PROMPT_PREFIX, PSEUDO_FILE, TEACHER_FILE
from freekd_mm.benchmark.plan import TEACHER
from freekd_mm.checkpoints.loading import load_checkpoint_file
from freekd_mm.checkpoints.saving import save_atomically
from freekd_mm.engine.evaluation import evaluate
from freekd_mm.engine.training import run
from freekd_mm.files import write_text
from freekd_mm.prompts.prompt_file import PROMPT_FILE
from freekd_mm.report.runs import read_run

CONFIG, JOB, RESULT = 'config.py', 'job.json', 'result.json'


def run_job(folder: Path) -> dict[str, Any]:
    """Trains the config in a folder, evaluates on the data that chooses (val) and on the data that reports (test)."""
    job = json.loads((folder / JOB).read_text(encoding='utf-8'))
    cfg = Config.fromfile(folder / CONFIG)
    cfg.work_dir = str(folder)
    cfg.experiment_name = f'{job["method"]}-{uuid.uuid4().hex}'
    if 'pseudo_labels' in cfg:
        return _label(cfg, folder / PSEUDO_FILE)
    # Only the last one counts, and many runs fill a disk.
    cfg.merge_from_dict({'default_hooks.checkpoint.max_keep_ckpts': 1})
    resumed = find_latest_checkpoint(str(folder)) is not None
    cpu = time.process_time()
    run(cfg, resume='auto')
    # Only of this process: more exact on a busy machine. Without the part before a resume.
    result: dict[str, Any] = {'cpu_seconds': round(time.process_time() - cpu, 1), 'resumed': resumed}
    trained = read_run(folder, job['method'])
    result['train_seconds'] = round(sum(map(_seconds, trained.logs)), 1)
    result['history'] = [[step / trained.steps, value] for step, value in trained.metric(job['metric'])]
    if job['method'].startswith(PROMPT_PREFIX):
        if not (folder / PROMPT_FILE).is_file():
            raise RuntimeError(f'stage 1 should have written {folder / PROMPT_FILE}, but did not')
        return result
    checkpoint = find_latest_checkpoint(str(folder))
    if checkpoint is None:
        raise RuntimeError(f'there should be a checkpoint in {folder}, but there is none: see its CheckpointHook')
    for split in ('val', 'test'):
        result[split] = _evaluate(cfg, checkpoint, split, job['metric'])
    if job['method'] == TEACHER:
        state = load_checkpoint_file(checkpoint)['state_dict']
        save_atomically({'state_dict': state}, folder / TEACHER_FILE)
    return result


def _label(cfg: Config, out: Path) -> dict[str, Any]:
    from freekd_mm.datasets.pseudo_labels import write_pseudo_labels

    start = time.monotonic()
    found = write_pseudo_labels(cfg, out=out, **cfg.pseudo_labels)
    if not found.labelled:
        raise RuntimeError(
            f'the teacher should find something, but did not: lower pseudo_score={cfg.pseudo_labels.score}'
        )
    counts = {'pictures': found.pictures, 'labelled': found.labelled, found.unit: found.counts}
    return {**counts, 'train_seconds': round(time.monotonic() - start, 1)}


def _seconds(log: Path) -> float:
    """Returns how long one start of a run took: mmengine names its folder by the time of the start."""
    return log.stat().st_mtime - time.mktime(time.strptime(log.parents[1].name, '%Y%m%d_%H%M%S'))


def _evaluate(cfg: Config, checkpoint: str, split: str, metric: str) -> dict[str, float]:
    cfg = cfg.copy()
    cfg.test_dataloader, cfg.test_evaluator = cfg[f'{split}_dataloader'], cfg[f'{split}_evaluator']
    cfg.custom_hooks = []
    if split == 'test':
        cfg.custom_hooks = [dict(type='freekd_mm.BenchmarkImagesHook', file=str(Path(cfg.work_dir) / IMAGES_FILE))]
    cfg.experiment_name = f'{split}-{uuid.uuid4().hex}'
    # Of a detector that finds no box at all MMDetection gives no number.
    return {key: float(value) for key, value in evaluate(cfg, checkpoint).items()} or {metric: 0.0}


if __name__ == '__main__':
    work_dir = Path(sys.argv[1])
    try:
        outcome = run_job(work_dir)
    except Exception as error:
        traceback.print_exc()
        outcome = {'error': f'{type(error).__name__}: {error}'.splitlines()[0]}
    write_text(work_dir / RESULT, json.dumps(outcome))
    sys.exit('error' in outcome)
