"""One entry of a distillation config: where to look, how to compare, which loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from freekd_mm.checks import check_options
from freekd_mm.compat.versions import zip_equal
from freekd_mm.runtime.config import build_component
from freekd_mm.runtime.cross_head import CrossHead, crossing_taps
from freekd_mm.runtime.probe import eval_mode, level_shapes
from freekd_mm.runtime.pull import Pull
from freekd_mm.runtime.taps import parse_taps
from freekd_mm.runtime.teacher import TEACHER, FrozenTeacher
from freekd_mm.runtime.wiring import Shape, alignment, as_maps, match_levels, projection, resize, size, without_vectors
from freekd_mm.tensors import Levels, as_levels, full_precision, shapes

OPTIONS = ('student', 'teacher', 'of', 'loss', 'connector', 'weight', 'through')


class Entry(nn.Module):
    """Compares the outputs of student and teacher at their taps.

    Its name is in the log, ``distill.loss_<name>``. Its options:

    Args:
        student: Tap or taps of the student, e.g. ``'neck'``.
        teacher: Tap or taps of the teacher; the student's by default.
        of: Name of the teacher, of several; the first by default.
        loss: Config of a loss; mmrazor's losses for one tensor are built once per level.
        connector: None projects and resizes where necessary; a config of a connector, which gets the
            student's levels and returns features with the teacher's channels, or a list with one per level; False
            compares the features as they are.
        weight: Factor on the loss, on top of the loss' own; ``'auto'`` lets it pull as hard as the task, see
            :class:`freekd_mm.runtime.pull.Pull`.
        through: ``dict(start=...)``: the student's features continue through the teacher's head, and its predictions
            are compared, see :class:`freekd_mm.runtime.cross_head.CrossHead`.
    """

    #: Set before the entry is wired; not a child, so neither parameters nor checkpoints see it.
    teacher: FrozenTeacher

    def __init__(self, name: str, cfg: dict) -> None:
        super().__init__()
        if not isinstance(name, str) or not name.isidentifier() or 'loss' in name:
            # mmengine adds up everything that is called a loss: the terms for the log would count twice.
            raise ValueError(f"name of a distill entry should be an identifier without 'loss' in it, but got {name!r}")
        if not isinstance(cfg, dict) or 'loss' not in cfg:
            raise TypeError(f"distill '{name}' should be a dict with at least 'loss', but got {cfg!r}")
        check_options(f"distill '{name}'", cfg, OPTIONS)
        self.name, self.cfg = name, cfg
        self.pull = Pull(name, cfg.get('weight', 1.0))
        student = cfg.get('student', 'neck')
        self.student_taps, self.teacher_taps = parse_taps(student), parse_taps(cfg.get('teacher') or student)
        self.of: str = TEACHER if cfg.get('of') is None else cfg['of']
        self.crossing_taps = crossing_taps(cfg.get('through'), f"through of distill '{name}'")
        self.through: CrossHead | None = None
        #: Factor of the weight schedule.
        self.scale = 1.0
        self.rows: list[list[str]] = []
        self._logged: tuple[str, ...] = ()

    def wire(self, students: Sequence[Tensor], teachers: Sequence[Tensor], image: tuple[int, int]) -> None:
        """Builds connector and losses for the levels that a dummy image of a size gives in student and teacher."""
        losses = nn.ModuleList([self._build('loss', self.cfg['loss'])])
        self.logits = getattr(losses[0], 'target', 'features') == 'logits'
        if self.crossing_taps:
            self.through = CrossHead(self.teacher, self.crossing_taps, students, **self.cfg['through'])
        with torch.no_grad():
            maps_s, maps_t = self._crossed(students, image), self._maps(teachers, image)
        # Classes are matched by name when the data set is known.
        same = self.logits and not hasattr(losses[0], 'share_classes')
        taps = (self.student_taps, self.teacher_taps)
        chosen = any(len(own) > 1 or own[0].index for own in taps)
        self.pairs = match_levels(level_shapes(maps_s), level_shapes(maps_t), self.name, same, chosen)
        left = [
            f'{count} {what} of the {who}'
            for who, given, maps in (('teacher', teachers, maps_t), ('student', students, maps_s))
            for count, what in ((len(maps) - len(self.pairs), 'level(s)'), (len(given) - len(maps), 'vector(s)'))
            if count
        ]
        paired_s, paired_t = [maps_s[s] for s, _ in self.pairs], [maps_t[t] for _, t in self.pairs]
        self._check_batch(paired_s, paired_t)
        shapes_s, shapes_t = level_shapes(paired_s), level_shapes(paired_t)
        self.connector = self._build_connector(shapes_s, shapes_t, getattr(losses[0], 'any_shape', False))
        if not getattr(losses[0], 'multi_level', False):
            losses.extend(self._build('loss', self.cfg['loss']) for _ in self.pairs[1:])
        self.losses = losses
        for module in self.modules():
            if isinstance(module, BaseModule) and not module.is_init:
                module.init_weights()
        if self.connector is not None:
            self._check_connector(self.connector, paired_s, shapes_t)
        taps_s, taps_t = (', '.join(map(str, own)) for own in taps)
        taps_t = taps_t if self.of == TEACHER else f'{self.of}: {taps_t}'
        self.rows = [
            [self.name, taps_t, size(shape_t), taps_s, size(shape_s), action]
            for shape_t, shape_s, action in zip_equal(shapes_t, shapes_s, self._actions(shapes_s, shapes_t))
        ]
        self.rows += [[self.name, f'{what} not used', '', '', '', ''] for what in left]

    @property
    def teacher_name(self) -> str:
        """The teacher, with its name if it has one."""
        return TEACHER if self.of == TEACHER else f'{TEACHER} {self.of}'

    def _build(self, what: str, cfg: dict) -> nn.Module:
        return build_component(cfg, f"{what} of distill '{self.name}'")

    def _maps(self, levels: Sequence[Tensor], image: tuple[int, int]) -> tuple[Tensor, ...]:
        """Transformer tokens become maps, vectors beside them are left out; logits stay as they are."""
        return tuple(levels) if self.logits else as_maps(without_vectors(levels), image)

    def _crossed(self, students: Sequence[Tensor], image: tuple[int, int]) -> tuple[Tensor, ...]:
        return self._maps(students if self.through is None else self.through(students), image)

    def _check_batch(self, students: Sequence[Tensor], teachers: Sequence[Tensor]) -> None:
        """Some models split a batch, or make more of it, only in training."""
        for student, teacher in zip_equal(students, teachers):
            if len(student) != len(teacher):
                raise ValueError(
                    f"distill '{self.name}': {', '.join(map(str, self.student_taps))} of the student should give as "
                    f'many maps for an image as {", ".join(map(str, self.teacher_taps))} of the teacher, but in '
                    f'training gives {len(student)} where the teacher gives {len(teacher)}; tap a module before it'
                )

    def _build_connector(
        self, students: Sequence[Shape], teachers: Sequence[Shape], any_shape: bool
    ) -> nn.Module | None:
        cfg = self.cfg.get('connector')
        if isinstance(cfg, (dict, list, tuple)):
            cfgs = [cfg] * len(students) if isinstance(cfg, dict) else cfg
            if len(cfgs) != len(students):
                raise ValueError(
                    f"connector of distill '{self.name}' should be a list of {len(students)}, one per level, but got "
                    f'{len(cfgs)}'
                )
            first = self._build('connector', cfgs[0])
            if isinstance(cfg, dict) and getattr(first, 'multi_level', False):
                return first
            return PerLevel([first, *(self._build('connector', other) for other in cfgs[1:])])
        if cfg is False or self.logits or any_shape:
            return None
        if all(len(shape) == 3 for shape in students):
            return PerLevel([projection(s[0], t[0]) for s, t in zip_equal(students, teachers)])
        if list(students) != list(teachers):
            raise ValueError(
                f"distill '{self.name}': only maps are projected and resized, but the shapes are "
                f"{', '.join(map(size, students))} and the teacher's {', '.join(map(size, teachers))}; "
                'give a connector, or connector=False if the loss can compare them'
            )
        return None

    def _check_connector(self, connector: nn.Module, students: Sequence[Tensor], wanted: Sequence[Shape]) -> None:
        # In eval mode: a norm cannot train on one image of one position, and should not count the dummy.
        with torch.no_grad(), eval_mode(connector):
            given = [level.shape[1] for level in self._connect(students)]
        if given != [shape[0] for shape in wanted]:
            raise ValueError(
                f"connector of distill '{self.name}' should give the teacher's channels "
                f'{[shape[0] for shape in wanted]}, but gives {given}'
            )

    def _actions(self, students: Sequence[Shape], teachers: Sequence[Shape]) -> list[str]:
        """Returns what becomes of each level of the student, for the table."""
        if self.connector is None:
            return [str(self.through or alignment((), ()))] * len(students)
        if self.cfg.get('connector') is None:
            return [alignment(*shapes) for shapes in zip_equal(students, teachers)]
        parts = self.connector if isinstance(self.connector, PerLevel) else [self.connector] * len(students)
        return [type(part).__name__ for part in parts]

    @property
    def active(self) -> bool:
        """Whether the entry contributes in this step."""
        wanted = self.scale > 0 and (self.pull.target is not None or self.pull.weight > 0)
        return wanted and any(getattr(loss, 'loss_weight', 1.0) != 0 for loss in self.losses)

    def _connect(self, students: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return as_levels(students if self.connector is None else self.connector(tuple(students)))

    def compared(
        self, students: Sequence[Tensor], teachers: Sequence[Tensor], image: tuple[int, int]
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Returns what the loss compares: the student's levels after the connector, and the teacher's paired ones."""
        students, teachers = self._crossed(students, image), self._maps(teachers, image)
        teachers = tuple(teachers[t] for _, t in self.pairs)
        features = self._connect([students[s] for s, _ in self.pairs])
        if self.connector is not None:
            features = tuple(resize(s, t.shape[-2:]) for s, t in zip_equal(features, teachers))
        return features, teachers

    def forward(
        self, students: Sequence[Tensor], teachers: Sequence[Tensor], image: tuple[int, int], task: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Returns ``{'distill.loss_<name>': ..., 'distill.<name>.<term>': ...}``, of :meth:`compared` features.

        ``task`` is the sum of the student's own losses in a step whose pull is measured.
        """
        features, teachers = self.compared(students, teachers, image)
        whole = getattr(self.losses[0], 'multi_level', False)
        pairs = [(features, teachers)] if whole else zip_equal(features, teachers)
        values = [self._compare(loss, *pair) for loss, pair in zip_equal(self.losses, pairs)]
        total = sum(values[1:], values[0])
        terms = {f'level{index}': value.detach() for index, value in enumerate(values)}
        if whole:
            terms = getattr(self.losses[0], 'terms', {})
        if task is not None:
            self.pull.measure(total, task, students)
        factor = self.pull.weight * self.scale
        if self.pull.count:
            terms = {**terms, 'pull': total.new_tensor(self.pull.ratio * factor)}
        logs = {f'distill.loss_{self.name}': total * factor if factor != 1 else total}
        logs.update({f'distill.{self.name}.{key}': term for key, term in terms.items()})
        self._logged = tuple(logs)
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


class PerLevel(nn.ModuleList):
    """Runs one connector per level, for connectors that take one tensor."""

    def forward(self, levels: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Maps each level with its own connector."""
        return tuple(connector(level) for connector, level in zip_equal(self, levels))
