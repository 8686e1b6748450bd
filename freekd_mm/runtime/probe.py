"""A dummy image through a model, to learn the shapes at its taps before training."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Tuple, TypeVar

import torch
from mmengine.device import get_device
from mmengine.structures import BaseDataElement, InstanceData
from torch import Tensor, nn

from freekd_mm.runtime.foreign import OptionsError
from freekd_mm.runtime.taps import TapRecorder
from freekd_mm.runtime.teacher import forward_features

Size = Tuple[int, int]
T = TypeVar('T')
# Tried first; an image of the user's pipeline is halved down to it.
SMALL, LARGE = 128, 256
# A model that refuses this one too has another reason.
LARGEST = 1024


class ProbeError(RuntimeError):
    """A model failed on a dummy image before its taps were reached."""


def config_size(cfg: Any) -> Size:
    """Returns the size of a dummy image from a config: what the training pipeline cuts or scales to, made smaller."""
    # The long side is divided by an integer to about 256; a side of less than 128 says little about deep levels.
    size = _pipeline_size(cfg.get('train_pipeline')) or _pipeline_size(find_pipeline(cfg.get('train_dataloader')))
    if size is None:
        return SMALL, SMALL
    factor = max(1, -(-max(size) // LARGE))
    height, width = (max(SMALL, round(side / factor / 32) * 32) for side in size)
    return height, width


def find_pipelines(dataset: Any) -> list[Any]:
    """Returns the pipelines of a loader or a data set, also within wrappers."""
    if not isinstance(dataset, dict):
        return []
    if dataset.get('pipeline'):
        return [dataset['pipeline']]
    inner = dataset.get('dataset') or dataset.get('datasets')
    parts = inner if isinstance(inner, (list, tuple)) else [inner]
    return [pipeline for part in parts for pipeline in find_pipelines(part)]


def find_pipeline(dataset: Any) -> Any:
    """Returns the first pipeline of a loader or a data set, None if there is none."""
    return next(iter(find_pipelines(dataset)), None)


def _pipeline_size(pipeline: Any) -> Size | None:
    """Returns (height, width) of the last crop of a pipeline, or of its last resize if it has none."""
    found: dict[str, Size] = {}
    for step in pipeline or []:
        for key in ('crop_size', 'scale', 'img_scale'):
            value = step.get(key) if isinstance(step, dict) else None
            value = (value, value) if isinstance(value, int) else value
            while isinstance(value, (list, tuple)) and value and isinstance(value[0], (list, tuple)):
                value = value[0]
            if isinstance(value, (list, tuple)) and len(value) == 2 and all(isinstance(side, int) for side in value):
                # Crops are (height, width), scales (width, height).
                found[key[-4:]] = (value[0], value[1]) if key == 'crop_size' else (value[1], value[0])
    return found.get('size') or found.get('cale')


def probe_sizes(models: Sequence[nn.Module], first: Size | None = None) -> list[Size]:
    """Returns the sizes to try: the first, those in the models' configs, and larger and larger ones."""
    sizes: list[Any] = [first or (SMALL, SMALL)]
    for model in models:
        sizes += [getattr(getattr(model, 'data_preprocessor', None), 'size', None)]
        sizes += [getattr(module, 'img_size', None) for module in model.modules()]
    sizes = [(size, size) if isinstance(size, int) else size for size in sizes]
    named = [tuple(size) for size in sizes if isinstance(size, (list, tuple)) and len(size) == 2]
    side = max(named[0])
    while side < LARGEST:
        side *= 2
        named.append((side, side))
    return list(dict.fromkeys(named))


def first_accepted(
    models: Sequence[nn.Module], size: Size | None, probe: Callable[[Size], T], first: Size | None = None
) -> T:
    """Runs ``probe`` with one size after the other until no model refuses it; a size of the user is the only one."""
    failures = []
    for candidate in [size] if size is not None else probe_sizes(models, first):
        try:
            return probe(candidate)
        except ProbeError as error:
            failures.append(error)
    raise failures[0]


def dummy_samples(model: nn.Module, size: Size) -> list[Any]:
    """Returns one data sample with the meta that models read in their forward pass."""
    shapes = dict.fromkeys(('img_shape', 'ori_shape', 'pad_shape', 'batch_input_shape'), size)
    meta = dict(shapes, scale_factor=(1.0, 1.0), img_id=0, border=(0, size[0], 0, size[1]), flip=False)
    packages = {base.__module__.split('.')[0] for base in type(model).__mro__}
    if 'mmseg' in packages:
        from mmseg.structures import SegDataSample

        return [SegDataSample(metainfo=meta)]
    if 'mmdet' in packages:
        from mmdet.structures import DetDataSample

        # Heads with denoising queries make these from the boxes, in training.
        boxes = InstanceData(bboxes=torch.tensor([[0.0, 0.0, *size[::-1]]]), labels=torch.zeros(1, dtype=torch.long))
        sample = DetDataSample(metainfo=meta, gt_instances=boxes)
        if hasattr(model, 'roi_head') and not hasattr(model, 'rpn_head'):  # it takes proposals from elsewhere
            sample.proposals = InstanceData(bboxes=boxes.bboxes, scores=torch.ones(1))
        return [sample]
    return [BaseDataElement(metainfo=meta)]


def changes_in_training(module: nn.Module) -> bool:
    """Tells whether a module's values change with the mode: norms with statistics, dropout, stochastic depth."""
    kinds = (
        nn.modules.batchnorm._NormBase,
        nn.modules.dropout._DropoutNd,
        nn.MultiheadAttention,  # its dropout is a number, not a module
    )
    name = type(module).__name__
    # By name, for types of other packages: mmcv's SyncBatchNorm, DropPath, StochasticDepth.
    return isinstance(module, kinds) or any(part in name for part in ('BatchNorm', 'Drop', 'StochasticDepth'))


@contextmanager
def eval_mode(model: nn.Module, training: bool = False) -> Iterator[None]:
    """Runs a model in eval mode, or in training mode except for norms and dropouts; restores all modes."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    for module, mode in modes.items():
        module.training = training and mode and not changes_in_training(module)
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def probe_model(
    model: nn.Module,
    recorder: TapRecorder,
    size: Size,
    run: Callable[[Tensor, Any], None] | None = None,
    training: bool = False,
) -> dict[str, int]:
    """Runs one dummy image; the recorder then holds the outputs of the taps. Returns how often each module ran.

    Some operators have no CPU kernel: a model that fails on the CPU is tried on the training's device. With
    ``training`` it runs as in training: some models return other outputs there. Its mode is restored.
    """
    parameter = next(model.parameters(), torch.zeros(()))

    def record(x: Tensor, samples: Any) -> None:
        with recorder:
            forward_features(model, x, samples)

    devices = dict.fromkeys([parameter.device, torch.device(get_device())])
    for device, mode in itertools.product(devices, dict.fromkeys([training, False])):
        inputs = torch.zeros(1, 3, *size, device=device, dtype=parameter.dtype)
        model.to(device)
        try:
            with torch.no_grad(), eval_mode(model, mode):
                (run or record)(inputs, dummy_samples(model, size))
            return recorder.counts()
        except OptionsError:
            raise
        except Exception as error:
            # A head may refuse a dummy image; that does not matter if the taps are before it.
            failure = recorder.failure = error
            if all(recorder.counts().values()):
                return recorder.counts()
        finally:
            model.to(parameter.device)
    said = str(failure).strip().rstrip('.')
    raise ProbeError(
        f'the {recorder.role} {type(model).__name__} failed on a dummy image of {size[0]}x{size[1]} before its taps '
        f'were reached: {type(failure).__name__}: {said}. Set probe_size to a size that it accepts; an operator that '
        'has no code for this device needs a GPU, and an mmcv that is compiled for it'
    ) from failure


def level_shapes(levels: Sequence[Tensor]) -> tuple[tuple[int, ...], ...]:
    """Returns the shapes of the levels without the batch dimension."""
    return tuple(tuple(level.shape[1:]) for level in levels)
