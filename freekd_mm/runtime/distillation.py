"""What distillation adds to a student: the teacher, the taps, and the entries with their losses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any
from zlib import crc32

import torch
from mmengine.dist import get_world_size
from torch import Tensor, nn

from freekd_mm.checks import check_choice
from freekd_mm.compat.versions import zip_equal
from freekd_mm.log import say
from freekd_mm.runtime.compatibility import check_boxes, check_prompts, hint_if_swapped, warn_if_swapped
from freekd_mm.runtime.entry import Entry
from freekd_mm.runtime.inherit import inherited_weights
from freekd_mm.runtime.preprocess import PreprocessBridge, preprocess_bridge
from freekd_mm.runtime.probe import Size, first_accepted, probe_model
from freekd_mm.runtime.pull import is_due, task_loss
from freekd_mm.runtime.rng import isolated_rng, step_seed
from freekd_mm.runtime.taps import TapRecorder
from freekd_mm.runtime.teacher import FrozenTeacher, build_teacher, named_teachers
from freekd_mm.text import table

#: In the meta of a picture that has no labels.
UNLABELLED = 'unlabelled'
HEADER = ('distill', 'teacher', 'shape', 'student', 'shape', 'the student is')


class Distillation(nn.Module):
    """The part of a distilled student that plain training does not have; the options are of ``DistilledModel``.

    As a child module of the student it holds the trainable connectors and the losses, so that optimizer,
    DDP and checkpoints see them as ``distillation.*``; the teacher is deliberately not a child.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: dict | Sequence[dict],
        distill: dict,
        probe_size: Size | None,
        inherit: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if not isinstance(distill, dict) or not distill:
            raise ValueError(
                f"distill should be a dict of named entries, for example dict(wavelet=dict(student='neck', loss=...)), "
                f'but got {distill!r}'
            )
        self.entries = nn.ModuleDict({name: Entry(name, cfg) for name, cfg in distill.items()})
        #: Steps distilled so far, also before a resume: the seed of what a loss or connector draws.
        self.steps = 0

        taps = [tap for entry in self._entries for tap in entry.student_taps]
        self.student_recorder = TapRecorder(student, taps, 'student')
        #: By name; the student inherits from the first.
        self.teachers: dict[str, FrozenTeacher] = {}
        configs = self._assigned(teacher)
        lines = [self._add(student, name, options, inherit) for name, options in configs.items()]
        models = [student, *(found.model for found in self.teachers.values())]
        first_accepted(models, probe_size, lambda size: self._wire(student, lines, size))
        for name, options in configs.items():
            check_prompts(self._entries_of(name), options.get('checkpoint'), bool(options.get('allow_mismatch', False)))

    def _assigned(self, teacher: dict | Sequence[dict]) -> dict[str, dict]:
        """Returns the options of the teachers by name, and tells each entry the name of its own."""
        configs = named_teachers(teacher)
        for entry in self._entries:
            entry.of = next(iter(configs)) if entry.cfg.get('of') is None else entry.of
            check_choice(f"'of' of distill '{entry.name}'", entry.of, configs)
        for name in configs:
            if not self._entries_of(name):
                raise ValueError(
                    f"each teacher should have an entry, but none has of='{name}': set it, or leave {name!r} out"
                )
        return configs

    def _add(self, student: nn.Module, name: str, options: dict, inherit: Sequence[str]) -> str:
        """Builds a teacher for its entries; returns a line about it."""
        with hint_if_swapped(student, options.get('checkpoint')):
            model, weights = build_teacher(options)
        warn_if_swapped(student, model)
        if not self.teachers:
            #: Taken before a teacher in half precision is rounded.
            self.inherited = inherited_weights(student, model, inherit)
        taps = [tap for entry in self._entries_of(name) for tap in (*entry.teacher_taps, *entry.crossing_taps)]
        own = {key: options[key] for key in ('dtype', 'outputs') if key in options}
        made_of = {key: value for key, value in options.items() if key not in (*own, 'name', 'checkpoint')}
        model.made_of = repr(made_of)  # type: ignore[assignment]
        self.teachers[name] = FrozenTeacher(model, taps, bridge=preprocess_bridge(student, model), **own)
        for entry in self._entries_of(name):
            entry.teacher = self.teachers[name]
        return f'teacher {type(model).__name__}, {weights}'

    def _wire(self, student: nn.Module, lines: Sequence[str], size: Size) -> None:
        self._runs = probe_model(student, self.student_recorder, size, training=True)
        counts = [probe_model(found.model, found.recorder, size, found.run) for found in self.teachers.values()]
        for entry in self._entries:
            # The models may have run on the training's device; connectors are not there yet.
            students = [level.cpu() for level in self.student_recorder.levels(entry.student_taps)]
            teachers = [level.cpu() for level in entry.teacher.levels(entry.teacher_taps)]
            entry.wire(students, teachers, size)
            check_boxes(entry, student, entry.teacher.model)
        for found, count in zip_equal(self.teachers.values(), counts):
            found.runs = count
        self.clear()
        rows = [row for entry in self._entries for row in entry.rows]
        say(f'distillation: {"; ".join(lines)}; shapes for a {size[0]}x{size[1]} image\n{table(rows, HEADER)}')

    def run_teachers(self, entries: Iterable[Entry], inputs: Tensor, data_samples: Any) -> None:
        """Runs the teachers of some entries, each once, on images as the student gets them (N, 3, H, W)."""
        images: dict[PreprocessBridge | None, Tensor] = {None: inputs.float()}
        for teacher in dict.fromkeys(entry.teacher for entry in entries):
            bridge = teacher.bridge
            if bridge is not None and bridge not in images:
                images[bridge] = bridge(images[None])
            teacher.run(images[bridge], data_samples)

    def clear(self) -> None:
        """Drops all recorded tensors."""
        self.student_recorder.clear()
        for teacher in self.teachers.values():
            teacher.clear()

    @property
    def _entries(self) -> list[Entry]:
        return list(self.entries.values())  # type: ignore[arg-type]

    def _entries_of(self, name: str) -> list[Entry]:
        return [entry for entry in self._entries if entry.of == name]

    @property
    def teacher(self) -> FrozenTeacher:
        """The first teacher."""
        return next(iter(self.teachers.values()))

    def run(self, student_loss: Callable[[], dict], inputs: Any, data_samples: Any, labelled: bool = True) -> dict:
        """Adds the distillation losses to those of the student, which ``student_loss`` computes.

        The inputs (N, 3, H, W) are as the student's data preprocessor made them; a semi-supervised detector has several
        by name, of which the labelled one is distilled: it runs first.
        """
        runs = None
        if isinstance(inputs, dict):
            inputs, data_samples, runs = inputs['sup'], data_samples['sup'], self._runs
        # A weight of zero costs nothing, not even the teacher's forward pass.
        stopped = self.student_recorder.model.distillation_stopped
        active = [entry for entry in self._entries if entry.active and not stopped]
        if not active:
            losses = dict(student_loss())
            if not losses and (not labelled or any(entry.scale == 0 for entry in self._entries)):
                return {'distill.loss_idle': _zero([self.student_recorder.model])}
            if not losses:
                raise RuntimeError(
                    'there should be a loss to train on, but the student has none of its own (task_loss=False or an '
                    'encoder) and all distillation weights are 0'
                )
            return {**losses, **_idle(self._entries, inputs)}
        seed = step_seed(self.steps)
        with isolated_rng(seed):
            self.run_teachers(active, inputs, data_samples)
        with self.student_recorder:
            losses = dict(student_loss())
        image, silent = (inputs.shape[-2], inputs.shape[-1]), not losses
        due = is_due(self.steps) or any(entry.pull.waiting for entry in self._entries)
        task = task_loss(losses, inputs) if due and labelled and torch.is_grad_enabled() else None
        with isolated_rng(seed):
            for entry in active:
                students = self.student_recorder.levels(entry.student_taps, runs)
                self._check_gradient(entry, students)
                losses.update(entry(students, entry.teacher.levels(entry.teacher_taps), image, task))
        losses.update(_idle([entry for entry in self._entries if entry not in active], inputs))
        if silent and get_world_size() > 1:
            # Under DDP every weight takes part, also where the task has no loss.
            losses['distill.loss_idle'] = _zero([self.student_recorder.model])
        self.clear()
        self.steps += 1
        return losses

    def _check_gradient(self, entry: Entry, students: Sequence[Tensor]) -> None:
        if torch.is_grad_enabled() and not any(level.requires_grad for level in students):
            taps = ', '.join(map(str, entry.student_taps))
            raise RuntimeError(
                f"distill '{entry.name}': the student's features at {taps} should carry a gradient, but do not; "
                'they are in a frozen stage or inside an activation checkpoint: tap a module after it.'
            )

    def get_extra_state(self) -> Tensor:
        """Returns the number of steps and how hard each entry pulls, for the checkpoint."""
        pulls = ((crc32(entry.name.encode()), entry.pull.count, entry.pull.log_ratio) for entry in self._entries)
        return torch.tensor([self.steps, *chain(*pulls)], dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """Continues after the steps of a checkpoint, with its pulls of the entries of the same names."""
        steps, *pulls = state.tolist()
        self.steps = int(steps)
        known = {name: (int(count), ratio) for name, count, ratio in zip(pulls[::3], pulls[1::3], pulls[2::3])}
        for entry in self._entries:
            entry.pull.count, entry.pull.log_ratio = known.get(crc32(entry.name.encode()), (0, 0.0))

    def entry(self, name: str) -> Entry:
        """Returns the entry called ``name``."""
        check_choice('distill entry', name, self.entries)
        return self.entries[name]  # type: ignore[return-value]


def is_unlabelled(data_samples: Any) -> bool:
    """Tells whether a batch is of pictures without labels."""
    marks = {UNLABELLED in sample.metainfo for sample in data_samples or () if hasattr(sample, 'metainfo')}
    if len(marks) > 1:
        raise ValueError(
            'a batch should have only pictures with labels or only pictures without, but has both: use '
            "batch_sampler=dict(type='freekd_mm.MixedBatchSampler')"
        )
    return marks == {True}


def _idle(entries: Iterable[Entry], inputs: Tensor) -> dict[str, Tensor]:
    """Returns the zeros of entries that do not take part in this step."""
    # Under DDP every parameter must: here they do, times zero.
    logs = {key: value for entry in entries for key, value in entry.idle(inputs).items()}
    return logs if get_world_size() == 1 else {**logs, 'distill.loss_idle': _zero(entries).to(inputs.device)}


def _zero(modules: Iterable[nn.Module]) -> Tensor:
    """Returns a zero in which every trained parameter takes part."""
    trained = [0 * p.sum() for module in modules for p in module.parameters() if p.requires_grad]
    return torch.stack(trained).sum() if trained else torch.zeros(())
