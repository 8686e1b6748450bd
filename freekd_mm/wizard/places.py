"""Finds what can be compared between a student and a teacher: their features, logits, and what the head classifies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Tuple

import torch
from torch import Tensor, nn

from freekd_mm.compat.versions import zip_equal
from freekd_mm.runtime.cross_head import find_head
from freekd_mm.runtime.probe import ProbeError, Size, first_accepted, level_shapes, probe_model
from freekd_mm.runtime.taps import Tap, TapRecorder, flatten, parse_taps
from freekd_mm.runtime.wiring import Shape, as_maps, match_levels, without_vectors
from freekd_mm.runtime.wiring import size as as_text
from freekd_mm.text import table
from freekd_mm.wizard.methods import Wiring

Levels = Tuple[Tensor, ...]
Shapes = Tuple[Shape, ...]


def _sizes(shapes: Shapes) -> str:
    return ', '.join(map(as_text, shapes))


class Outputs(TapRecorder):
    """Records what every module of a model gives for a dummy image, as tensors without values.

    The image must reach the chosen tap, or features where none is chosen.
    """

    def __init__(self, model: nn.Module, role: str, size: Size, chosen: str | None = None) -> None:
        self.chosen = () if chosen is None else parse_taps(chosen)
        paths = [path for path, _ in model.named_modules() if path and 'data_preprocessor' not in path]
        super().__init__(model, [*self.chosen, *map(Tap, paths)], role)
        self.size = size
        self._made: dict[Any, tuple[str, Tensor]] = {}
        self._classified = ''

    def counts(self) -> dict[str, int]:
        """Returns how many modules gave features; none if a neck refused the image: another image may fit."""
        if self.chosen:
            return {'chosen': len(self.outputs[self.chosen[0].path])}
        necks = [runs for path, runs in self.outputs.items() if path.split('.')[-1] == 'neck']
        refused = necks and not any(necks)
        return {'features': 0 if refused else sum(1 for _ in self.candidates())}

    def _record(self, path: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if path == 'decode_head.conv_seg':
            self._classified, _ = self._made.get(_place(inputs[0]), ('', None))
        # Modules that return their input (dropout in eval mode, activations in place) make nothing.
        if path.startswith('decode_head.') and _place(output) not in map(_place, inputs):
            self._made[_place(output)] = path, output  # kept, so that no other tensor gets its place
        self.outputs[path] = [*self.outputs.pop(path), _without_values(output)]  # in the order in which modules finish

    def __exit__(self, *exc_info: Any) -> None:
        super().__exit__(*exc_info)
        self._made.clear()

    @property
    def classified(self) -> str | None:
        """The module whose output the classifier of the decode head reads, None if there is no such module."""
        runs_once = self._classified and len(self.outputs[self._classified]) == 1
        return self._classified if runs_once and self.given('decode_head')[0] else None

    def given(self, path: str) -> tuple[Levels, bool]:
        """Returns the output of a module that ran once, and whether an index counts its levels."""
        output, *others = self.outputs[path] or [None]
        try:
            levels = () if others else tuple(flatten(output, Tap(path)))
        except TypeError:  # something other than tensors
            levels = ()
        return levels, isinstance(output, (tuple, list)) and len(output) == len(levels)

    def maps(self, path: str) -> Levels:
        """Returns the feature maps of one image that a module returned, none if it returned something else."""
        levels = without_vectors(self.given(path)[0])
        try:
            maps = as_maps(levels, self.size)
        except ValueError:  # tokens of something other than the image
            return ()
        return maps if all(level.dim() == 4 and len(level) == 1 for level in maps) else ()

    def stages(self) -> Shapes:
        """Returns the shapes of the maps of the backbone, none without one."""
        return level_shapes(self.maps('backbone')) if 'backbone' in self.outputs else ()

    def shapes(self, depth: int = 3) -> dict[str, Shapes]:
        """Returns the shapes of what modules of a depth gave, without those of vectors alone."""
        found = {path: level_shapes(self.given(path)[0]) for path in self.outputs if path.count('.') < depth}
        return {path: shapes for path, shapes in found.items() if any(len(shape) > 1 for shape in shapes)}

    def candidates(self) -> Iterator[str]:
        """Yields the modules that return features: necks, backbones, other modules before the heads, their parts."""
        names = [path for path in self.outputs if self.maps(path)]

        def rank(path: str) -> tuple[bool, int, bool]:
            parts = path.split('.')
            return parts[-1] != 'neck', len(parts), parts[0] != self.role

        named = [path for path in names if path.split('.')[-1] in ('neck', 'backbone')]
        # Modules finish in the order of their depth: the last ones are nearest to the heads.
        others = [path for path in reversed(names) if 'head' not in path and path not in named]
        shallow = sorted((path for path in others if path.count('.') < 2), key=lambda path: path.count('.'))
        yield from (*sorted(named, key=rank), *shallow)


def _place(value: Any) -> Any:
    return (value.data_ptr(), value.shape) if isinstance(value, Tensor) else None


def _without_values(output: Any) -> Any:
    if isinstance(output, Tensor):
        return torch.empty_like(output, device='meta')
    if isinstance(output, dict):
        return {key: _without_values(item) for key, item in output.items()}
    return [_without_values(item) for item in output] if isinstance(output, (tuple, list)) else output


@dataclass(frozen=True)
class Probed:
    """A model without weights as its config describes it, and what a dummy image showed."""

    outputs: Outputs  # in eval mode
    #: Tap of its features in eval mode, as a teacher runs, and the shapes (C, H, W) of their levels.
    features: str
    shapes: Shapes
    trained: str  # tap of the same features in training, where some models return more
    vectors: int  # how many among them are left out
    stages: Shapes = ()  # shapes of all maps of its backbone, of a student in training

    @property
    def model(self) -> nn.Module:
        """The model."""
        return self.outputs.model

    def listing(self) -> str:
        """Returns the modules that can be tapped, with the shapes of their outputs, as a table."""
        rows = [[path, _sizes(shapes)] for path, shapes in self.outputs.shapes().items()]
        return table(rows, [f'module of {type(self.model).__name__}', 'gives'])


def probe_built(model: nn.Module, role: str, size: Size, features: str | None = None) -> Probed:
    """Finds the tap of the features of a built model, unless the user chose one."""
    # A neck is tapped whole. Without one: all levels of the backbone if their strides increase, else (as in dilated
    # segmentation backbones) the last.
    trained, evaluated = (Outputs(model, role, size, features) for _ in range(2))
    if features is not None:
        outputs = trained if role == 'student' else evaluated
        probe_model(model, outputs, size, training=outputs is trained)
        given = outputs.levels(outputs.chosen)
        kept = without_vectors(given)
        if outputs is trained:
            with suppress(ProbeError):  # only for the listing and the heads
                probe_model(model, evaluated, size)
        shapes = level_shapes(as_maps(kept, size))
        return Probed(evaluated, features, shapes, features, len(given) - len(kept), outputs.stages())
    for outputs in (trained, evaluated):
        probe_model(model, outputs, size, training=outputs is trained)
    for path in evaluated.candidates():
        found = _as_trained(path, trained, evaluated)
        if found is not None:
            return Probed(evaluated, *found, (trained if role == 'student' else evaluated).stages())
    given_by = '; '.join(f'{path}: {_sizes(shapes)}' for path, shapes in evaluated.shapes(depth=1).items())
    raise ValueError(
        f'the {role} should have a module that gives feature maps, the same in training and in evaluation, but '
        f'{type(model).__name__} has none ({given_by}); choose one with --features (-v then lists all modules)'
    )


def _as_trained(path: str, trained: Outputs, evaluated: Outputs) -> tuple[str, Shapes, str, int] | None:
    """Returns a module's tap, shapes, tap in training and number of vectors; None if training gives other maps."""
    maps, own = evaluated.maps(path), trained.maps(path)
    shapes = level_shapes(maps)
    levels, flat = evaluated.given(path)
    vectors = len(levels) - len(maps)
    index = ''
    # Backbones that keep a resolution are best compared at its end; a neck's levels all count.
    if not path.endswith('neck') and len({shape[1:] for shape in shapes}) < len(shapes):
        last = max(i for i, level in enumerate(levels) if level.dim() > 2)
        index = f'[{last}]' if flat and vectors else '[-1:]'
        shapes = shapes[-1:]
    if level_shapes(own) == level_shapes(maps):
        return f'{path}{index}', shapes, f'{path}{index}', vectors
    given, flat = trained.given(path)
    same = [i for i, level in enumerate(given) if tuple(level.shape) == (1, *shapes[-1])]
    if len(maps) != 1 or not same or not flat:
        return None
    return f'{path}{index}', shapes, f'{path}[{same[-1]}]', vectors


def probe_models(
    built: dict[str, nn.Module], first: Size, size: Size | None = None, features: dict[str, str] | None = None
) -> tuple[list[Probed], Size]:
    """Probes the models, by role, with one image size that all of them take; with the taps that the user chose.

    It is the ``size`` that the user chose, or the ``first``; if a model refuses that, one that the models name, or a
    larger one.
    """

    def probe(size: Size) -> tuple[list[Probed], Size]:
        return [probe_built(model, role, size, (features or {}).get(role)) for role, model in built.items()], size

    return first_accepted(list(built.values()), size, probe, first)


def nearest_level(shapes: tuple[Shape, ...], height: float) -> int:
    """Returns which of some levels (C, H, W) is nearest to a height."""
    return min(range(len(shapes)), key=lambda level: abs(shapes[level][1] - height))


def at_level_of(student: Probed, teacher: Probed) -> Probed:
    """Returns the student with the level alone that is nearest to the teacher's one map."""
    if len(student.shapes) == 1:
        return student
    level = nearest_level(student.shapes, teacher.shapes[0][1])
    tap = f'{student.trained}[{level}]'
    return replace(student, features=tap, trained=tap, shapes=student.shapes[level : level + 1])


def find_logits(student: Probed, teacher: Probed) -> dict[str, Any]:
    """Returns what :class:`Wiring` says about logits: tap, classes, sigmoids, other sizes, or why there is none."""
    for path, test in (
        ('bbox_head[0]', _is_dense_head),
        ('decode_head', lambda head: isinstance(getattr(head, 'conv_seg', None), nn.Module)),
    ):
        tap = Tap.parse(path)
        heads: list[Any] = [getattr(probed.model, tap.path, None) for probed in (student, teacher)]
        if not all(map(test, heads)):
            continue
        # Other classes are matched by name when the training starts.
        classes = [int(getattr(head, 'cls_out_channels', None) or head.out_channels) for head in heads]
        try:
            shapes = [level_shapes(probed.outputs.levels([tap])) for probed in (student, teacher)]
        except (RuntimeError, TypeError, ValueError) as error:  # a feature method needs none
            return {'why_no_logits': str(error)}
        anchors = [[shape[0] // count for shape in own] for own, count in zip_equal(shapes, classes)]
        if anchors[0] != anchors[1]:
            return {'why_no_logits': f'the heads have {anchors[0]} and {anchors[1]} anchors (other levels or anchors)'}
        resize = any(own[1:] != other[1:] for own, other in zip_equal(*shapes))
        if resize and test is _is_dense_head:
            return {'why_no_logits': 'the levels of the heads have other strides'}
        sigmoid = bool(getattr(heads[0], 'use_sigmoid_cls', False))
        return {'logits': path, 'num_classes': classes[0], 'use_sigmoid': sigmoid, 'resize': resize}
    why = 'one of them has no dense head (bbox_head) or segmentation head (decode_head) with such logits'
    return {'why_no_logits': why}


def _is_dense_head(head: Any) -> bool:
    return all(hasattr(head, name) for name in ('cls_out_channels', 'use_sigmoid_cls', 'prior_generator'))


def find_wiring(student: Probed, teacher: Probed, head: bool = False) -> Wiring:
    """Pairs the levels of both and finds what a logit loss could use; with ``head``, what decode heads classify."""
    chosen = any(Tap.parse(tap).index for tap in (student.trained, teacher.features))
    pairs = match_levels(student.shapes, teacher.shapes, 'features', chosen=chosen)
    wiring = Wiring(
        student.trained,
        teacher.features,
        tuple(student.shapes[s] for s, _ in pairs),
        tuple(teacher.shapes[t] for _, t in pairs),
        indices_t=None if len(pairs) == len(teacher.shapes) else tuple(t for _, t in pairs),
        **find_logits(student, teacher),
        stages=(student.stages, teacher.stages),
        dense_s=find_head(student.model),
        dense_t=find_head(teacher.model),
    )
    own, theirs = (probed.outputs.classified if head else None for probed in (student, teacher))
    if own is None or theirs is None:
        return wiring
    shapes, shapes_t = (level_shapes(p.outputs.levels([Tap(path)])) for p, path in ((student, own), (teacher, theirs)))
    same = replace(wiring, features_s=own, features_t=theirs, shapes_s=shapes, shapes_t=shapes_t, indices_t=None)
    return replace(wiring, head=same)
