"""Builds the models of a distillation config, loads a checkpoint, and reads images as the config does."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dataset import Compose
from torch import nn

from freekd_mm.checkpoints.fitting import load_what_fits, load_whole, weights_of
from freekd_mm.checkpoints.loading import load_checkpoint_file
from freekd_mm.compat.versions import zip_equal
from freekd_mm.runtime.config import build_model, default_scope, is_distilled
from freekd_mm.runtime.model import PREFIX
from freekd_mm.runtime.rng import isolated_rng
from freekd_mm.visualize.features import View, look

INIT = 'init'
#: Steps of a pipeline that read what an image alone does not have.
ANNOTATIONS = ('LoadAnnotations', 'LoadPanopticAnnotations', 'LoadProposals', 'FilterAnnotations')


def load_student(model: nn.Module, checkpoint: str | Path, needs_all: bool = True) -> None:
    """Loads a training checkpoint of a distilled student; without ``needs_all`` its projections may be missing."""
    weights = weights_of(load_checkpoint_file(checkpoint), checkpoint)
    fit = load_what_fits(model, weights)
    if needs_all or fit.reshaped or not all(name.startswith(PREFIX) for name in fit.missing):
        load_whole(model, weights, checkpoint)


def compare(
    cfg: Config, checkpoint: str | Path, data: Sequence[Any], before: str | Path | None = None
) -> list[tuple[View, View | None]]:
    """Looks at each sample with the student of a checkpoint, and with the student before.

    The student before is ``'init'``, as the training starts, or that of a checkpoint; one without projections, such as
    that of the student alone, is shown through those of the distillation.
    """
    if not is_distilled(cfg.model):
        raise ValueError(
            f"config should be a distillation config, with model=dict(type='freekd_mm.DistilledModel', ...), but its "
            f'model is {cfg.model.get("type")!r}; write one with tools/make_config.py'
        )
    with default_scope(cfg.get('default_scope')), isolated_rng(cfg.get('randomness', {}).get('seed') or 0):
        model = build_model(cfg.model, cfg.get('default_scope')).eval()
        first: list[Any] = [None] * len(data)
        if before == INIT:
            model.init_weights()  # type: ignore[operator]
            first = [look(model, item) for item in data]
        load_student(model, checkpoint)
        after = [look(model, item) for item in data]
        if before is not None and before != INIT:
            load_student(model, before, needs_all=False)
            first = [look(model, item) for item in data]
    return list(zip_equal(after, first))


def read_images(cfg: Config, files: Sequence[str | Path]) -> list[Any]:
    """Reads image files through the config's test pipeline, without annotations."""
    for file in files:
        if not Path(file).is_file():
            raise FileNotFoundError(f'an image should be an existing file, but got {str(file)!r}')
    with default_scope(cfg.get('default_scope')):
        compose = Compose(copy.deepcopy(_pipeline(cfg)))
        return [compose({'img_path': str(file), 'img_id': index}) for index, file in enumerate(files)]


def _pipeline(cfg: Config) -> list[dict]:
    for name in ('test_dataloader', 'val_dataloader'):
        dataset = (cfg.get(name) or {}).get('dataset')
        while isinstance(dataset, dict):
            if dataset.get('pipeline'):
                return [step for step in dataset['pipeline'] if str(step['type']).split('.')[-1] not in ANNOTATIONS]
            dataset = dataset.get('dataset')
    raise ValueError('config should have a test_dataloader or val_dataloader, which says how images are read')
