"""The plain student of a config with the weights of a checkpoint, and pictures of its test data."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import DATASETS
from torch import nn

from freekd_mm.checkpoints.fitting import PREFIX, WeightsMismatchError, load_whole, weights_of
from freekd_mm.runtime.config import build_empty, default_scope
from freekd_mm.text import some


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hides what building models and reading annotations prints; logged warnings stay."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter('ignore')
            yield
    finally:
        logger.setLevel(level)


def build_plain(cfg: Config, file: Any, source: str) -> tuple[nn.Module, list[str]]:
    """Builds the plain student of a config with all weights of a checkpoint, and no others.

    Returns also those weights of ``file``, the content of the checkpoint ``source``, that are second names of others.
    """
    weights = weights_of(file, source)
    for name in [name for name in weights if name.startswith(PREFIX)]:
        del weights[name]
    with quiet():
        model = build_empty(cfg)
    fit = load_whole(model, weights, source)
    # In training, DDQ's decoder gets branches of its head.
    used = [value for key, value in weights.items() if key not in fit.unused]
    unused = [key for key in fit.unused if not any(torch.equal(weights[key], value) for value in used)]
    if unused:
        raise WeightsMismatchError(
            f'{source} should hold the weights of {fit.model} and no others, but has {some(unused)}. Check that '
            'config and checkpoint belong together.'
        )
    return model.eval(), fit.unused


def some_samples(cfg: Config, count: int) -> tuple[list[Any], dict[str, Any]]:
    """Returns some items of a config's test data, evenly spread, and what it says about its classes."""
    with default_scope(cfg.get('default_scope')):
        loader = cfg.get('test_dataloader') or cfg.val_dataloader
        dataset = DATASETS.build(copy.deepcopy(loader['dataset']))
    chosen = np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int)
    return [dataset[int(index)] for index in chosen], dict(dataset.metainfo)
