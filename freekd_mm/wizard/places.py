"""Finds out what of a student and a teacher can be compared: their features, logits, and what the head classifies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from mmengine.config import Config
from torch import Tensor, nn

from freekd_mm.compat.versions import zip_equal
from freekd_mm.runtime.config import build_model, find_model, without_pretrained
from freekd_mm.runtime.probe import level_shapes, probe_model
from freekd_mm.runtime.taps import Tap, TapRecorder
from freekd_mm.runtime.wiring import match_levels
from freekd_mm.wizard.heads import find_head
from freekd_mm.wizard.methods import Shape, Wiring


@dataclass(frozen=True)
class Probed:
    """A model as its config describes it, and what a dummy image gave."""

    model: nn.Module
    features: str
    shapes: tuple[Shape, ...]


def probe_config(cfg: Config, role: str, size: tuple[int, int]) -> Probed:
    """Builds a model without weights and finds the tap of its features.

    A neck is tapped whole. Without one: all levels of the backbone where their strides increase, else (as in
    dilated segmentation backbones) the last.
    """
    model_cfg, scope = find_model(cfg)
    model = build_model(without_pretrained(model_cfg), scope)
    module = 'neck' if getattr(model, 'neck', None) is not None else 'backbone'
    if not isinstance(getattr(model, module, None), nn.Module):
        raise ValueError(
            f'the {role} should have a neck or a backbone, but {type(model).__name__} has '
            f'{", ".join(name for name, _ in model.named_children())}; write the config by hand'
        )
    shapes = _shapes(model, module, role, size)
    if module == 'backbone' and len(shapes) > 1 and len({shape[1:] for shape in shapes}) < len(shapes):
        return Probed(model, 'backbone[-1:]', shapes[-1:])
    return Probed(model, module, shapes)


def _shapes(model: nn.Module, path: str, role: str, size: tuple[int, int]) -> tuple[Shape, ...]:
    tap = Tap.parse(path)
    recorder = TapRecorder(model, [tap], role)
    probe_model(model, recorder, size)
    shapes = level_shapes(recorder.levels([tap]))
    recorder.clear()
    return shapes  # type: ignore[return-value]


def find_logits(student: nn.Module, teacher: nn.Module, size: tuple[int, int]) -> tuple[str | None, int, bool, str]:
    """Returns the tap of comparable logits, the classes, whether they are sigmoids, or what is in the way."""
    for path, test in (('bbox_head[0]', _is_dense_head), ('decode_head', _is_decode_head)):
        heads: list[Any] = [getattr(model, path.split('.')[0].split('[')[0], None) for model in (student, teacher)]
        if not all(head is not None and test(head) for head in heads):
            continue
        classes = [int(getattr(head, 'cls_out_channels', None) or head.out_channels) for head in heads]
        # Other classes are matched by name when the training starts.
        anchors = [
            [shape[0] // count for shape in _shapes(model, path, 'model', size)]
            for model, count in zip_equal((student, teacher), classes)
        ]
        if anchors[0] != anchors[1]:
            return None, 0, False, f'the heads have {anchors[0]} and {anchors[1]} anchors (other levels or anchors)'
        return path, classes[0], bool(getattr(heads[0], 'use_sigmoid_cls', False)), ''
    return (
        None,
        0,
        False,
        'one of them has no dense head (bbox_head) or segmentation head (decode_head) with such logits',
    )


def _is_dense_head(head: Any) -> bool:
    return hasattr(head, 'cls_out_channels') and hasattr(head, 'use_sigmoid_cls') and hasattr(head, 'prior_generator')


def _is_decode_head(head: Any) -> bool:
    return isinstance(getattr(head, 'conv_seg', None), nn.Module)


def find_classified(model: nn.Module, size: tuple[int, int]) -> str | None:
    """Returns the module whose output the classifier of the decode head reads, None where there is no such module.

    Modules that hand their input on (dropout in eval mode, activations in place) do not count, and of a module and its
    last part, which give the same tensor, the whole is returned.
    """
    head: Any = getattr(model, 'decode_head', None)
    if not _is_decode_head(head):
        return None
    outputs: list[tuple[str, Tensor]] = []
    classified: list[Tensor] = []

    def record(name: str) -> Callable[[nn.Module, tuple, Any], None]:
        def hook(module: nn.Module, inputs: tuple, output: Any) -> None:
            if isinstance(output, Tensor) and not any(_is_same(output, value) for value in inputs):
                outputs.append((name, output))

        return hook

    handles = [m.register_forward_hook(record(f'decode_head.{name}')) for name, m in head.named_modules() if name]
    handles.append(head.conv_seg.register_forward_pre_hook(lambda _, inputs: classified.append(inputs[0])))
    try:
        _shapes(model, 'decode_head', 'model', size)
    finally:
        for handle in handles:
            handle.remove()
    found = [name for name, output in outputs if classified and _is_same(output, classified[-1])]
    ran = [name for name, _ in outputs]
    return found[-1] if found and ran.count(found[-1]) == 1 else None


def _is_same(a: Tensor, b: Any) -> bool:
    return isinstance(b, Tensor) and a.data_ptr() == b.data_ptr() and a.shape == b.shape


def find_wiring(student: Probed, teacher: Probed, size: tuple[int, int], head: bool = False) -> Wiring:
    """Pairs the levels of both and finds out what a logit loss could use.

    Args:
        student: The student.
        teacher: The teacher.
        size: Height and width of the dummy image.
        head: Whether to find what the decode heads classify as well.
    """
    pairs = match_levels(student.shapes, teacher.shapes, 'features', logits=False)
    logits, classes, sigmoid, why = find_logits(student.model, teacher.model, size)
    wiring = Wiring(
        student.features,
        teacher.features,
        tuple(student.shapes[pair.student] for pair in pairs),
        tuple(teacher.shapes[pair.teacher] for pair in pairs),
        logits,
        classes,
        sigmoid,
        why,
        None if len(pairs) == len(teacher.shapes) else tuple(pair.teacher for pair in pairs),
        dense_s=find_head(student.model),
        dense_t=find_head(teacher.model),
    )
    own, theirs = (find_classified(probed.model, size) if head else None for probed in (student, teacher))
    if own is None or theirs is None:
        return wiring
    return replace(
        wiring,
        head=replace(
            wiring,
            features_s=own,
            features_t=theirs,
            shapes_s=_shapes(student.model, own, 'student', size),
            shapes_t=_shapes(teacher.model, theirs, 'teacher', size),
            indices_t=None,
        ),
    )
