"""One entry of a distillation config: where to look, how to compare, which loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from freekd_mm.checks import check_options
from freekd_mm.compat.versions import zip_equal
from freekd_mm.runtime.components import build_component
from freekd_mm.runtime.cross_head import CrossHead, crossing_taps
from freekd_mm.runtime.pull import Pull
from freekd_mm.runtime.taps import Tap, parse_taps
from freekd_mm.runtime.teacher import FrozenTeacher
from freekd_mm.runtime.wiring import Align, Shape, as_maps, match_levels, resize, without_vectors
from freekd_mm.tensors import Levels, as_levels, full_precision, shapes

OPTIONS = ('student', 'teacher', 'loss', 'connector', 'weight', 'through')


class Entry(nn.Module):
    """Compares the outputs of student and teacher at their taps.

    Args:
        name: Name of the entry; its loss is logged as ``distill.loss_<name>``.
        student: Tap or taps of the student, e.g. ``'neck'``.
        teacher: Tap or taps of the teacher; the student's by default.
        loss: Config of a loss; mmrazor's losses for one tensor are built once per level.
        connector: None projects and resizes where necessary; a config of a connector, which gets the
            student's levels and returns features with the teacher's channels, or a list with one per level; False
            compares the features as they are.
        weight: Factor on the loss, on top of the loss' own; ``'auto'`` lets it pull as hard as the task, see
            :class:`freekd_mm.runtime.pull.Pull`.
        through: Options of :class:`freekd_mm.runtime.cross_head.CrossHead`: the student's features continue through the
            teacher's head, and its predictions are compared.
    """

    def __init__(
        self,
        name: str,
        loss: dict,
        student: str | Sequence[str] = 'neck',
        teacher: str | Sequence[str] | None = None,
        connector: dict | Sequence[dict] | bool | None = None,
        weight: float | str = 1.0,
        through: dict | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(name, str) or not name.isidentifier() or 'loss' in name:
            # mmengine adds up everything that is called a loss: the terms for the log would count twice.
            raise ValueError(f"name of a distill entry should be an identifier without 'loss' in it, but got {name!r}")
        self.pull = Pull(name, weight)
        self.name = name
        self.student_taps = parse_taps(student)
        self.teacher_taps = parse_taps(student if teacher is None else teacher)
        self.loss_cfg, self.connector_cfg, self.through_cfg = loss, connector, through
        self.crossing_taps = () if through is None else crossing_taps(through, f"through of distill '{name}'")
        self.through: CrossHead | None = None
        #: Factor of the weight schedule.
        self.scale = 1.0
        self.rows: list[list[str]] = []
        self._logged: tuple[str, ...] = ()

    @classmethod
    def from_config(cls, name: str, cfg: dict) -> Entry:
        """Builds an entry and checks the option names."""
        if not isinstance(cfg, dict) or 'loss' not in cfg:
            raise TypeError(f"distill '{name}' should be a dict with at least 'loss', but got {cfg!r}")
        check_options(f"distill '{name}'", cfg, OPTIONS)
        return cls(name, **cfg)

    def taps(self, role: str) -> tuple[Tap, ...]:
        """Returns all places in the student or the teacher that the entry looks at."""
        return self.student_taps if role == 'student' else (*self.teacher_taps, *self.crossing_taps)

    def wire(
        self,
        students: Sequence[Tensor],
        teachers: Sequence[Tensor],
        image: tuple[int, int],
        teacher: FrozenTeacher | None = None,
    ) -> None:
        """Builds connector and losses for the levels that a dummy image of a size gives in student and teacher."""
        losses = nn.ModuleList([build_component(self.loss_cfg, f"loss of distill '{self.name}'")])
        self.logits = getattr(losses[0], 'target', 'features') == 'logits'
        if self.through_cfg is not None and teacher is not None:
            self.through = CrossHead(teacher, students, **self.through_cfg)
        counts = len(students), len(teachers)
        with torch.no_grad():
            students, teachers = self._crossed(students, image), self._maps(teachers, image)
        vectors = {'student': counts[0] - len(students), 'teacher': counts[1] - len(teachers)}
        before = [tuple(level.shape[1:]) for level in students]
        wanted = [tuple(level.shape[1:]) for level in teachers]
        # Classes are matched by name when the data set is known.
        same = self.logits and not hasattr(losses[0], 'share_classes')
        self.pairs = match_levels(before, wanted, self.name, same)
        self._check_batch(students, teachers)
        before = [before[pair.student] for pair in self.pairs]
        wanted = [wanted[pair.teacher] for pair in self.pairs]
        self.connector = self._build_connector(before, wanted, getattr(losses[0], 'any_shape', False))
        if not getattr(losses[0], 'multi_level', False):
            losses.extend(build_component(self.loss_cfg, f"loss of distill '{self.name}'") for _ in self.pairs[1:])
        self.losses = losses
        for module in self.modules():
            if isinstance(module, BaseModule) and not module.is_init:
                module.init_weights()
        if self.connector is not None and not isinstance(self.connector, Align):
            self._check_connector([students[pair.student] for pair in self.pairs], wanted)
        self.rows = self._describe(before, wanted, len(students), len(teachers))
        self.rows += [
            [self.name, f'{count} vector(s) of the {who} left out', '', '', '', '']
            for who, count in vectors.items()
            if count
        ]

    def _maps(self, levels: Sequence[Tensor], image: tuple[int, int]) -> tuple[Tensor, ...]:
        """Transformer tokens become maps, vectors beside them are left out; logits stay as they are."""
        return tuple(levels) if self.logits else as_maps(without_vectors(levels), image)

    def _check_batch(self, students: Sequence[Tensor], teachers: Sequence[Tensor]) -> None:
        """Some models split a batch, or make more of it, only in training."""
        for pair in self.pairs:
            given, wanted = students[pair.student].shape[0], teachers[pair.teacher].shape[0]
            if given != wanted:
                raise ValueError(
                    f"distill '{self.name}': {', '.join(map(str, self.student_taps))} of the student should give as "
                    f'many maps for an image as {", ".join(map(str, self.teacher_taps))} of the teacher, but in '
                    f'training gives {given} where the teacher gives {wanted}; tap a module before it'
                )

    def _crossed(self, students: Sequence[Tensor], image: tuple[int, int]) -> tuple[Tensor, ...]:
        return self._maps(students if self.through is None else self.through(students), image)

    def _build_connector(
        self, students: Sequence[Shape], teachers: Sequence[Shape], any_shape: bool
    ) -> nn.Module | None:
        if isinstance(self.connector_cfg, (list, tuple)):
            if len(self.connector_cfg) != len(students):
                raise ValueError(
                    f"connector of distill '{self.name}' should be a list of {len(students)}, one per level, but got "
                    f'{len(self.connector_cfg)}'
                )
            return PerLevel([build_component(cfg, f"connector of distill '{self.name}'") for cfg in self.connector_cfg])
        if isinstance(self.connector_cfg, dict):
            connector = build_component(self.connector_cfg, f"connector of distill '{self.name}'")
            if getattr(connector, 'multi_level', False) or len(students) == 1:
                return connector
            others = [build_component(self.connector_cfg, f"connector of distill '{self.name}'") for _ in students[1:]]
            return PerLevel([connector, *others])
        if self.connector_cfg is False or self.logits or any_shape:
            return None
        if any(len(shape) != 3 for shape in students):
            if list(students) != list(teachers):
                raise ValueError(
                    f"distill '{self.name}': only maps are projected and resized, but the shapes are "
                    f"{', '.join(map(_size, students))} and the teacher's {', '.join(map(_size, teachers))}; "
                    'give a connector, or connector=False for a loss that takes them'
                )
            return None
        return Align(students, teachers)

    def _check_connector(self, students: Sequence[Tensor], wanted: Sequence[Shape]) -> None:
        assert self.connector is not None
        given = [tuple(level.shape[1:]) for level in _as_tuple(self._connect(students, students))]
        if [shape[0] for shape in given] != [shape[0] for shape in wanted]:
            raise ValueError(
                f"connector of distill '{self.name}' should give the teacher's channels "
                f'{[shape[0] for shape in wanted]}, but gives {[shape[0] for shape in given]}'
            )

    def _describe(self, students: list[Shape], teachers: list[Shape], count_s: int, count_t: int) -> list[list[str]]:
        if isinstance(self.connector, Align):
            actions = self.connector.actions
        elif self.through is not None:
            actions = [str(self.through)] * len(students)
        else:
            actions = _connector_names(self.connector, len(students))
        rows = [
            [
                self.name,
                ', '.join(map(str, self.teacher_taps)),
                _size(teacher),
                ', '.join(map(str, self.student_taps)),
                _size(student),
                action,
            ]
            for teacher, student, action in zip_equal(teachers, students, actions)
        ]
        for count, who in ((count_t, 'teacher'), (count_s, 'student')):
            if count != len(self.pairs):
                rows.append([self.name, f'{count - len(self.pairs)} level(s) of the {who} not used', '', '', '', ''])
        return rows

    @property
    def active(self) -> bool:
        """Whether the entry contributes in this step."""
        wanted = self.scale > 0 and (self.pull.target is not None or self.pull.weight > 0)
        return wanted and any(getattr(loss, 'loss_weight', 1.0) != 0 for loss in self.losses)

    def _connect(self, students: Sequence[Tensor], teachers: Sequence[Tensor]) -> Any:
        if self.connector is None:
            return tuple(students)
        if isinstance(self.connector, Align):
            return self.connector(students, teachers)
        if getattr(self.connector, 'multi_level', False):
            return self.connector(tuple(students))
        return self.connector(students[0])

    def compared(
        self, students: Sequence[Tensor], teachers: Sequence[Tensor], image: tuple[int, int]
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Returns what the loss compares: the student's levels after the connector, and the teacher's paired ones."""
        students, teachers = self._crossed(students, image), self._maps(teachers, image)
        teachers = tuple(teachers[pair.teacher] for pair in self.pairs)
        features = _as_tuple(self._connect(tuple(students[pair.student] for pair in self.pairs), teachers))
        if self.connector is not None and not isinstance(self.connector, Align):
            # A connector changes channels; other strides are still resized here, as without a connector.
            features = tuple(resize(s, t.shape[-2:]) for s, t in zip_equal(features, teachers))
        return features, teachers

    def forward(
        self,
        students: Sequence[Tensor],
        teachers: Sequence[Tensor],
        image: tuple[int, int],
        task: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Returns ``{'distill.loss_<name>': ..., 'distill.<name>.<term>': ...}``, of :meth:`compared` features.

        ``task`` is the sum of the student's own losses in a step whose pull is measured.
        """
        features, teachers = self.compared(students, teachers, image)
        logs: dict[str, Tensor] = {}
        if len(self.losses) == 1 and getattr(self.losses[0], 'multi_level', False):
            total = self._compare(self.losses[0], features, teachers)
            terms = getattr(self.losses[0], 'terms', {})
        else:
            terms, total = {}, features[0].new_zeros(())
            for index, (loss, s, t) in enumerate(zip_equal(self.losses, features, teachers)):
                value = self._compare(loss, s, t)
                terms[f'level{index}'] = value.detach()
                total = total + value
        if task is not None:
            self.pull.measure(total, task, students)
        factor = self.pull.weight * self.scale
        if self.pull.count:
            terms = {**terms, 'pull': total.new_tensor(self.pull.ratio * factor)}
        self._logged = (f'distill.loss_{self.name}', *(f'distill.{self.name}.{key}' for key in terms))
        logs[f'distill.loss_{self.name}'] = total * factor if factor != 1 else total
        for key, term in terms.items():
            logs[f'distill.{self.name}.{key}'] = term
        return logs

    def idle(self, inputs: Tensor) -> dict[str, Tensor]:
        """Returns zeros for what the log showed last: else the log would keep the values of the last active step."""
        return {key: inputs.new_zeros(()) for key in self._logged}

    def _compare(self, loss: nn.Module, students: Levels, teachers: Levels) -> Tensor:
        """Returns the loss, computed in float32 also under autocast; mmrazor's sums overflow in half precision."""
        students, teachers = (tuple(map(full_precision, as_levels(levels))) for levels in (students, teachers))
        try:
            with torch.autocast(students[0].device.type, enabled=False):
                if getattr(loss, 'multi_level', False):
                    return loss(students, teachers)
                # Some of mmrazor's losses use view, which maps made of tokens do not allow.
                return loss(students[0].contiguous(), teachers[0].contiguous())
        except (AssertionError, ValueError) as error:
            raise ValueError(
                f"distill '{self.name}': {type(loss).__name__} cannot compare the student's {shapes(students)} with "
                f"the teacher's {shapes(teachers)}: {error}"
            ) from error


class PerLevel(nn.Module):
    """Runs one connector per level, for connectors that take one tensor."""

    multi_level = True

    def __init__(self, connectors: Sequence[nn.Module]) -> None:
        super().__init__()
        self.connectors = nn.ModuleList(connectors)

    def forward(self, levels: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Maps each level with its own connector."""
        return tuple(connector(level) for connector, level in zip_equal(self.connectors, levels))


def _connector_names(connector: nn.Module | None, count: int) -> list[str]:
    """Returns what the table says about each level."""
    if isinstance(connector, PerLevel):
        return [type(module).__name__ for module in connector.connectors]
    return [type(connector).__name__ if connector is not None else 'as it is'] * count


def _as_tuple(features: Any) -> tuple[Tensor, ...]:
    return (features,) if isinstance(features, Tensor) else tuple(features)


def _size(shape: Shape) -> str:
    return 'x'.join(map(str, shape))
