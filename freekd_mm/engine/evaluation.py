"""Evaluates a checkpoint with the plain student of a config."""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.dist import is_main_process
from mmengine.runner import Runner

from freekd_mm.checkpoints.fitting import load_whole, weights_of
from freekd_mm.checkpoints.loading import load_checkpoint_file
from freekd_mm.checkpoints.sources import fetch, short_hash
from freekd_mm.compat import install
from freekd_mm.engine.distributed import has_whole_weights, prepare_cpu_processes, unwrapped_model
from freekd_mm.engine.process import clean_up, quiet_building
from freekd_mm.engine.workdir import is_first_process
from freekd_mm.files import make_room, write_kept
from freekd_mm.runtime.config import find_model, is_distilled, type_name

#: Below the work directory: an evaluation writes nothing beside what the training wrote.
FOLDER = 'test'
#: Written beside the log of every evaluation.
RESULT = 'result.json'
PICKLES = ('.pkl', '.pickle')
#: Test time augmentation of a detector whose config has none: MMDetection's default, one flip.
DETECTOR_TTA = {'type': 'DetTTAModel', 'tta_cfg': {'nms': {'type': 'nms', 'iou_threshold': 0.5}, 'max_per_img': 100}}
FLIPS = [{'type': 'RandomFlip', 'prob': prob} for prob in (1.0, 0.0)]


def plain_config(cfg: Config) -> Config:
    """Returns the config with a distilled student replaced by the student alone."""
    cfg = cfg.copy()
    if is_distilled(cfg.model):
        cfg.model, _ = find_model(cfg)
        cfg.custom_hooks = [hook for hook in cfg.get('custom_hooks') or [] if type_name(hook) != 'DistillScheduleHook']
    return cfg


def evaluate(
    cfg: Config,
    checkpoint: str,
    result: str | None = None,
    out: str | None = None,
    show: bool = False,
    show_dir: str | None = None,
    wait_time: float = 2.0,
    tta: bool = False,
) -> dict:
    """Evaluates a checkpoint, written in training or an exported student, and returns the metrics.

    The options are those of ``tools/test.py``. Metrics, checkpoint and the first digits of its SHA-256 are written to
    ``<work_dir>/test/<timestamp>/result.json``, and to ``result``.
    """
    install()
    file = fetch(checkpoint)
    weights = weights_of(load_checkpoint_file(file), checkpoint)
    cfg = plain_config(cfg)
    prepare_cpu_processes(cfg)
    cfg.load_from, cfg.resume = checkpoint, False
    # A run writes its config into its folder, where that of the training is.
    cfg.work_dir = str(Path(cfg.work_dir) / FOLDER)
    if is_first_process(cfg.get('launcher', 'none')):
        for path in filter(None, (out, show_dir)):
            make_room(Path(path))
    if show or show_dir:
        _draw(cfg, show, show_dir, wait_time)
    if tta:
        _augment(cfg)
    if out:
        _keep_predictions(cfg, out)
    with ExitStack() as end:
        with quiet_building():
            runner = Runner.from_cfg(cfg)
            end.callback(clean_up, runner)
            if has_whole_weights(runner):
                model = unwrapped_model(runner)
                load_whole(model.module if tta else model, weights, checkpoint)
        runner.dump_config()
        del weights
        metrics = runner.test()
    if is_main_process():
        # A number without its file would be credited to another one.
        content = {**metrics, 'checkpoint': str(checkpoint), 'sha256': short_hash(file)}
        for written in [Path(runner.log_dir) / RESULT, *([Path(result)] if result else [])]:
            # Evaluators return NumPy numbers, too.
            write_kept(written, json.dumps(content, indent=2, default=float))
    return metrics


def _is_segmenter(cfg: Config) -> bool:
    return cfg.get('default_scope') == 'mmseg'


def _draw(cfg: Config, show: bool, show_dir: str | None, wait_time: float) -> None:
    """Turns on the hook that draws predictions, as MMDetection's and MMSegmentation's own scripts do."""
    hook = cfg.get('default_hooks', {}).get('visualization')
    if hook is None:
        raise ValueError('--show and --show-dir need default_hooks.visualization in the config, but it has none')
    hook.update(draw=True, show=show, wait_time=wait_time)
    if show_dir and _is_segmenter(cfg):
        cfg.visualizer.save_dir = show_dir
    elif show_dir:
        hook.test_out_dir = os.path.abspath(show_dir)  # MMDetection would put it below the work directory


def _augment(cfg: Config) -> None:
    """Wraps the model and changes the test pipeline for test time augmentation."""
    dataset = cfg.test_dataloader.dataset
    while 'dataset' in dataset:
        dataset = dataset.dataset
    if not _is_segmenter(cfg):
        *steps, pack = dataset.pipeline
        keys = pack.get('meta_keys')
        # Notes the flip, which is undone in the predictions.
        pack = {**pack, 'meta_keys': (*keys, 'flip', 'flip_direction')} if keys else pack
        cfg.setdefault('tta_model', DETECTOR_TTA)
        cfg.setdefault('tta_pipeline', [*steps, {'type': 'TestTimeAug', 'transforms': [FLIPS, [pack]]}])
    missing = [name for name in ('tta_model', 'tta_pipeline') if name not in cfg]
    if missing:
        raise ValueError(f'--tta needs tta_model and tta_pipeline in the config, but it has no {" and ".join(missing)}')
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
    dataset.pipeline = cfg.tta_pipeline


def _keep_predictions(cfg: Config, out: str) -> None:
    given = cfg.test_evaluator
    evaluators: list[Any] = list(given) if isinstance(given, (list, tuple)) else [given]
    if out.endswith(PICKLES):
        kind = 'mmdet.DumpDetResults' if cfg.get('default_scope') == 'mmdet' else 'DumpResults'
        evaluators.append({'type': kind, 'out_file_path': out})
    elif _is_segmenter(cfg):
        for evaluator in evaluators:
            evaluator.output_dir = out
    else:
        raise ValueError(
            f'--out should be a file like predictions.pkl, which gets the predictions, but got {out!r}; the metrics '
            'are written with --result metrics.json'
        )
    cfg.test_evaluator = evaluators
