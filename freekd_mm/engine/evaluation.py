"""Evaluates a checkpoint with the plain student of a config."""

from __future__ import annotations

import json
from pathlib import Path

from mmengine.config import Config
from mmengine.dist import is_main_process

from freekd_mm.checkpoints.sources import fetch, short_hash
from freekd_mm.compat import install
from freekd_mm.engine.distributed import prepare_cpu_processes
from freekd_mm.engine.visualizer import forget_visualizer
from freekd_mm.files import write_text

#: Written beside the log of every evaluation.
RESULT = 'result.json'


def plain_config(cfg: Config) -> Config:
    """Returns the config with a distilled student replaced by the student alone."""
    from freekd_mm.runtime.config import find_model, is_distilled

    cfg = cfg.copy()
    if is_distilled(cfg.model):
        cfg.model, _ = find_model(cfg)
        cfg.custom_hooks = [
            hook for hook in cfg.get('custom_hooks') or [] if not str(hook.get('type')).endswith('DistillScheduleHook')
        ]
    return cfg


def evaluate(cfg: Config, checkpoint: str, out: str | None = None, show_dir: str | None = None) -> dict:
    """Evaluates a checkpoint and returns the metrics.

    Args:
        cfg: The training config; of a distilled student or plain.
        checkpoint: Checkpoint written in training, or an exported student.
        out: JSON file for the metrics, with the checkpoint and the first digits of its SHA-256; the same is written
            to ``<work_dir>/<timestamp>/result.json``.
        show_dir: Directory for pictures of the predictions.
    """
    from mmengine.runner import Runner

    install()
    cfg = plain_config(cfg)
    prepare_cpu_processes(cfg)
    cfg.load_from, cfg.resume = checkpoint, False
    if show_dir:
        if 'visualization' not in cfg.get('default_hooks', {}):
            raise ValueError('--show-dir needs default_hooks.visualization in the config, but it has none')
        cfg.default_hooks.visualization.draw = True
        cfg.default_hooks.visualization.test_out_dir = show_dir
    runner = Runner.from_cfg(cfg)
    try:
        metrics = runner.test()
    finally:
        forget_visualizer(runner.visualizer)
    if is_main_process():
        # A number without the file that it is of would be credited to another one.
        result = {**metrics, 'checkpoint': str(checkpoint), 'sha256': short_hash(fetch(checkpoint))}
        for file in [Path(runner.log_dir) / RESULT, *([Path(out)] if out else [])]:
            # Evaluators return NumPy numbers, too.
            write_text(file, json.dumps(result, indent=2, default=float) + '\n')
    return metrics
