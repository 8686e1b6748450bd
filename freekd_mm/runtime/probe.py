"""A dummy image through a model, to learn the shapes at its taps before training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from freekd_mm.runtime.taps import TapRecorder
from freekd_mm.runtime.teacher import forward_features


def dummy_samples(model: nn.Module, size: tuple[int, int]) -> list[Any]:
    """Returns one data sample with the meta that models read in their forward pass."""
    meta = dict(
        img_shape=size, ori_shape=size, pad_shape=size, batch_input_shape=size, scale_factor=(1.0, 1.0), img_id=0
    )
    packages = {base.__module__.split('.')[0] for base in type(model).__mro__}
    if 'mmseg' in packages:
        from mmseg.structures import SegDataSample

        return [SegDataSample(metainfo=meta)]
    if 'mmdet' in packages:
        from mmdet.structures import DetDataSample

        return [DetDataSample(metainfo=meta)]
    from mmengine.structures import BaseDataElement

    return [BaseDataElement(metainfo=meta)]


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Runs a model in eval mode and gives each module its own mode back."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def probe_model(
    model: nn.Module,
    recorder: TapRecorder,
    size: tuple[int, int],
    run: Callable[[Tensor, Any], None] | None = None,
) -> dict[str, int]:
    """Runs one dummy image in eval mode; the recorder then holds what the taps gave.

    Args:
        model: Teacher or student; its mode is restored.
        recorder: Recorder of its taps.
        size: Height and width of the dummy image.
        run: How to run it and record; by default the forward pass without losses.

    Returns:
        How often each tapped module ran.
    """
    parameter = next(model.parameters(), None)
    device = parameter.device if parameter is not None else torch.device('cpu')
    dtype = parameter.dtype if parameter is not None else torch.float32
    inputs = torch.zeros(1, 3, *size, device=device, dtype=dtype)

    def record(x: Tensor, samples: Any) -> None:
        with recorder:
            forward_features(model, x, samples)

    try:
        with torch.no_grad(), eval_mode(model):
            (run or record)(inputs, dummy_samples(model, size))
    except Exception as error:
        # A head may refuse a dummy image; that is no matter when the taps lie before it.
        if not all(recorder.counts().values()):
            raise RuntimeError(
                f'the {recorder.role} {type(model).__name__} failed on a dummy image of {size[0]}x{size[1]} '
                f'before its taps were reached: {type(error).__name__}: {error}. '
                'Set probe_size to a size it takes.'
            ) from error
    return recorder.counts()


def level_shapes(levels: Sequence[Tensor]) -> tuple[tuple[int, ...], ...]:
    """Returns the shapes of the levels without the batch dimension."""
    return tuple(tuple(level.shape[1:]) for level in levels)
