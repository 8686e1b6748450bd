"""Takes the plain student out of a training checkpoint, and checks that it predicts the same on test pictures."""

from __future__ import annotations

import copy
import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS
from torch import Tensor, nn

from freekd_mm.checkpoints.fitting import PREFIX, WeightsMismatchError, load_whole, weights_of
from freekd_mm.checkpoints.loading import load_checkpoint_file
from freekd_mm.checks import check_positive
from freekd_mm.compat import install
from freekd_mm.compat.versions import zip_equal
from freekd_mm.files import write_kept
from freekd_mm.log import quiet, warn
from freekd_mm.runtime.config import build_empty, default_scope
from freekd_mm.runtime.model import student_state_dict
from freekd_mm.runtime.probe import LARGE, dummy_samples
from freekd_mm.runtime.rng import isolated_rng
from freekd_mm.text import some
from freekd_mm.version import __version__


@dataclass(frozen=True)
class Export:
    """What an export wrote, and what its check found."""

    path: Path
    weights: int
    dropped: int
    megabytes: float
    images: int
    difference: float

    def __str__(self) -> str:
        return (
            f'{self.path}: {self.weights} weights, {self.megabytes:.1f} MB, '
            f'{self.dropped} of the distillation left out; '
            f'predictions on {self.images} images differ by at most {self.difference:.2g}'
        )


def export_student(
    cfg: Config, checkpoint: str | os.PathLike, out: str | os.PathLike, half: bool = False, images: int = 2
) -> Export:
    """Writes the plain student's weights and compares its predictions with the training checkpoint's.

    The options are those of :func:`freekd_mm.export`. The file holds ``state_dict`` and a short ``meta``. Raises an
    error if the checkpoint does not hold the whole student, or the predictions differ.
    """
    install()
    check_positive('images', images, integer=True)
    file = load_checkpoint_file(checkpoint)
    if not isinstance(file, dict) or 'state_dict' not in file:
        raise ValueError(f"{checkpoint} should be a training checkpoint with a 'state_dict', but is not")
    state = student_state_dict(file['state_dict'])
    before, doubled = build_plain(cfg, file, str(checkpoint))

    weights = {key: value.detach().cpu().clone() for key, value in state.items() if key not in doubled}
    if half:
        weights = {key: value.half() if value.is_floating_point() else value for key, value in weights.items()}
    meta = {
        'dataset_meta': file.get('meta', {}).get('dataset_meta', {}),
        'exported_by': f'freekd_mm {__version__}',
        'dtype': 'float16' if half else 'float32',
    }
    path = _save({'meta': meta, 'state_dict': weights}, Path(out))

    after, _ = build_plain(cfg, load_checkpoint_file(path), str(path))
    batches = _images(cfg, images, before)
    with default_scope(cfg.get('default_scope')):
        difference = max(_difference(before, after, batch) for batch in batches)
    # Half precision rounds weights to about 1e-3 of their size; scores and boxes move with them.
    if not half and difference > 0:
        raise RuntimeError(f'{path} should predict what {checkpoint} predicts, but they differ by {difference:.3g}')
    return Export(
        path, len(weights), len(file['state_dict']) - len(state), path.stat().st_size / 1e6, len(batches), difference
    )


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


def export_parts(student: Path, folder: Path) -> dict[str, Path]:
    """Writes a file like ``backbone.pth`` for each part of an exported student; the part's ``init_cfg`` takes it."""
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in load_checkpoint_file(student)['state_dict'].items():
        part, _, name = key.partition('.')
        parts.setdefault(part, {})[name] = value
    return {part: _save({'state_dict': weights}, folder / f'{part}.pth') for part, weights in parts.items()}


def _save(checkpoint: dict[str, Any], path: Path) -> Path:
    content = io.BytesIO()
    torch.save(checkpoint, content)
    return write_kept(path, content.getvalue())


def _images(cfg: Config, count: int, model: nn.Module) -> list[Any]:
    """Returns batches of one image of the test set, or of noise."""
    if cfg.get('test_dataloader') or cfg.get('val_dataloader'):
        try:
            with quiet():
                return [pseudo_collate([item]) for item in some_samples(cfg, count)[0]]
        except Exception as error:
            warn(f'the test data cannot be read, so the predictions are compared on noise: {error}')
    noise = torch.Generator().manual_seed(0)
    size = cfg.model.get('probe_size') or (LARGE, LARGE)
    images = [(torch.rand(3, *size, generator=noise) * 255).to(torch.uint8) for _ in range(count)]
    return [{'inputs': [image], 'data_samples': dummy_samples(model, size)} for image in images]


def some_samples(cfg: Config, count: int) -> tuple[list[Any], dict[str, Any]]:
    """Returns some items of a config's test data, evenly spread, and what it says about its classes."""
    with default_scope(cfg.get('default_scope')):
        loader = cfg.get('test_dataloader') or cfg.val_dataloader
        dataset = DATASETS.build(copy.deepcopy(loader['dataset']))
    chosen = np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int)
    return [dataset[int(index)] for index in chosen], dict(dataset.metainfo)


def _difference(first: Any, second: Any, batch: Any) -> float:
    """Returns the largest difference between the predictions of two models, inf if their sizes differ."""
    pairs = list(zip_equal(_outputs(first, batch), _outputs(second, batch)))
    if any(ours.shape != theirs.shape for ours, theirs in pairs):
        return float('inf')
    return max((float((a.double() - b.double()).abs().max()) for a, b in pairs if a.numel()), default=0.0)


@torch.no_grad()
def _outputs(model: Any, batch: Any) -> list[Tensor]:
    """Returns what a model predicts, and its raw outputs too, because a half trained detector may find nothing."""
    data = model.data_preprocessor(copy.deepcopy(batch), False)
    runs: dict[str, Callable[[], Any]] = {
        'predictions': lambda: model.test_step(copy.deepcopy(batch)),
        'raw outputs': lambda: model(data['inputs'], data['data_samples'], mode='tensor'),
        'features': lambda: model.extract_feat(data['inputs']),
    }
    found: dict[str, list[Tensor]] = {}
    for name, run in runs.items():
        try:
            with isolated_rng(seed=0):  # some heads draw random numbers in their forward pass
                found[name] = _tensors(run())
        except Exception as error:  # no kernel on this device, no such forward pass
            failure = error
    if 'predictions' not in found:
        warn(f'the model cannot predict here ({failure}); compared: {" and ".join(found) or "nothing"}')
    if not found:
        raise failure
    return [tensor for tensors in found.values() for tensor in tensors]


def _tensors(item: Any) -> list[Tensor]:
    """Returns all tensors in predictions: data samples, dicts, lists, boxes, in a fixed order."""
    item = getattr(item, 'tensor', item)
    if isinstance(item, Tensor):
        return [item]
    if hasattr(item, 'items'):
        item = [value for _, value in sorted(item.items())]
    return [tensor for value in item for tensor in _tensors(value)] if isinstance(item, (list, tuple)) else []
