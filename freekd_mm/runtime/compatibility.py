"""Checks from files and sizes whether teacher, student and prompt belong together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from freekd_mm.checkpoints.fitting import WeightsMismatchError, weights_of
from freekd_mm.checkpoints.loading import load_checkpoint_file
from freekd_mm.checkpoints.sources import fetch, sha256
from freekd_mm.log import warn
from freekd_mm.prompts.generator import PoIMaskGenerator
from freekd_mm.prompts.prompt_file import PromptFile
from freekd_mm.runtime.cross_head import DenseHead, find_head
from freekd_mm.runtime.encoder import FeatureEncoder
from freekd_mm.text import some


def warn_if_swapped(student: nn.Module, teacher: nn.Module) -> None:
    """Warns if the teacher is the smaller model; an encoder alone says nothing."""
    if isinstance(teacher, FeatureEncoder):
        return
    sizes = [sum(parameter.numel() for parameter in model.parameters()) for model in (student, teacher)]
    if sizes[1] < sizes[0]:
        warn(
            f'the teacher {type(teacher).__name__} has {sizes[1] / 1e6:.3g} M parameters, fewer than the student with '
            f'{sizes[0] / 1e6:.3g} M: are teacher and student swapped?'
        )


@contextmanager
def hint_if_swapped(student: nn.Module | None, checkpoint: str | None) -> Iterator[None]:
    """Adds a hint to the error of a teacher's checkpoint that does not fit the teacher, but the student."""
    try:
        yield
    except WeightsMismatchError as error:
        if student is None or checkpoint is None:
            raise
        state = weights_of(load_checkpoint_file(fetch(checkpoint)), checkpoint)
        own = {key: value.shape for key, value in student.state_dict().items()}
        fitting = sum(getattr(state.get(key), 'shape', None) == shape for key, shape in own.items())
        hint = ' It fits the student: are teacher and student swapped?' if fitting > 0.9 * len(own) else ''
        raise WeightsMismatchError(f'{error}{hint}') from error


def check_prompts(entries: Iterable[Any], checkpoint: str | None, tolerant: bool) -> None:
    """Raises an error (or warns) if a prompt of the wired entries was trained with other weights than the teacher's."""
    for entry in entries:
        for module in entry.modules():
            if isinstance(module, PoIMaskGenerator) and checkpoint is not None:
                check_prompt(f"distill '{entry.name}': the prompt", module.file, checkpoint, tolerant)


def check_prompt(what: str, prompt: PromptFile, checkpoint: str, tolerant: bool = False) -> None:
    """Raises an error (or warns) if a prompt was trained with other weights than those of a checkpoint."""
    hashed = sha256(fetch(checkpoint)) if prompt.teacher_sha256 else ''
    if hashed == prompt.teacher_sha256:
        return
    text = (
        f'{what} should be made for the teacher {checkpoint} (SHA-256 {hashed[:12]}), but was made for '
        f'{prompt.teacher} ({prompt.teacher_sha256[:12]}): train one for this teacher, or distil from the one that it '
        'was made for'
    )
    if not tolerant:
        raise ValueError(f'{text}. If they hold the same weights, set allow_mismatch=True in teacher.')
    warn(text)


def check_boxes(entry: Any, student: nn.Module, teacher: nn.Module) -> None:
    """Raises an error if a loss expects other boxes than the head predicts: shapes do not always show it."""
    # The teacher's head makes both predictions if the entry goes through it.
    boxes = getattr(entry.losses[0], 'boxes', None)
    for model, role in ((teacher, 'teacher'), *(((student, 'student'),) if entry.through is None else ())):
        head = find_head(model)
        if boxes is None or not isinstance(head, DenseHead):
            continue
        if head.boxes != boxes:
            raise ValueError(
                f"distill '{entry.name}': the boxes that {type(entry.losses[0]).__name__} compares should be {boxes}, "
                f"but those of the {role}'s {type(model.bbox_head).__name__} are {head.boxes}"
            )
        if boxes == 'distances' and entry.through is None and getattr(model.bbox_head, 'norm_on_bbox', False):
            raise ValueError(
                f"distill '{entry.name}': boxes of a head with norm_on_bbox=True should be compared through the "
                f"teacher's head (through=dict(start=...)), since those of the {role} have another unit in training"
            )


def check_classes(student: Sequence[str] | None, teacher: Sequence[str] | None, entries: Iterable[Any]) -> None:
    """Compares the classes of the student's training set with those in the teacher's checkpoint.

    If they differ, losses on class scores compare only the shared classes, matched by name; no shared one is an error.
    Features can always be compared: a warning.
    """
    if student is None or teacher is None or list(student) == list(teacher):
        return
    shared = [name for name in student if name in teacher]
    left = [some([name for name in classes if name not in shared], 10) for classes in (student, teacher)]
    text = (
        f'the student has {len(student)} classes and the teacher {len(teacher)}, in another order or with other names; '
        f'both know {len(shared)}, the student alone {left[0]}, the teacher alone {left[1]}'
    )
    logits = [entry for entry in entries if entry.logits]
    if not logits:
        warn(f'{text}; only features are compared, so this may be intended')
        return
    names = ', '.join(repr(entry.name) for entry in logits)
    if not shared or not all(hasattr(entry.losses[0], 'share_classes') for entry in logits):
        raise ValueError(f'distill {names}: logits should be of classes that both know by the same name, but {text}')
    indices = [[classes.index(name) for name in shared] for classes in (list(student), list(teacher))]
    for entry in logits:
        # Through the teacher's head both scores are of its classes.
        entry.losses[0].share_classes(indices[0 if entry.through is None else 1], indices[1])
    warn(f'distill {names}: {text}. Only the classes that both know are compared, matched by name')
