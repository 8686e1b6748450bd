"""What the losses of a distilled student see for an image: the compared features, their bands, masks and weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from mmengine.dataset import pseudo_collate
from torch import Tensor, nn

from freekd_mm.compat.versions import zip_equal
from freekd_mm.frequency import WaveletBands, dwt2d
from freekd_mm.losses.bands.distance import TINY
from freekd_mm.losses.bands.loss import BandLoss
from freekd_mm.prompts.masks import mask_groups
from freekd_mm.runtime.preprocess import as_rgb
from freekd_mm.runtime.probe import eval_mode
from freekd_mm.runtime.rng import isolated_rng
from freekd_mm.runtime.teacher import forward_features
from freekd_mm.stage1.selectivity import of_masks

#: For losses without wavelets: enough to show what differs.
LEVELS = 3


@dataclass(frozen=True)
class BandMaps:
    """The bands of one feature level of one image, each as a map of its strength (h, w): the mean of |band| over C.

    Attributes:
        teacher: Low band first, then horizontal, vertical and diagonal detail from the finest level on.
        student: The same of the student.
        difference: The mean of |student - teacher|.
    """

    teacher: list[np.ndarray]
    student: list[np.ndarray]
    difference: list[np.ndarray]

    @property
    def names(self) -> list[str]:
        """The names of the bands."""
        return ['low', *(f'{kind} {1 + index // 3}' for index, kind in enumerate(KINDS * (len(self.teacher) // 3)))]


KINDS = ('horizontal', 'vertical', 'diagonal')


@dataclass
class Seen:
    """What one entry of the distillation compares for one image.

    Attributes:
        entry: Its name.
        bands: By feature level; empty where the entry compares no maps of one shape.
        masks: By feature level, one (T, h, w) per group of bands; empty without a prompt.
        weights: By feature level, the weights of the channels (C,); empty without a relation.
        prompt: How selective the prompt is: as stage 1 measured it, or what these masks tell; empty without a prompt.
        note: Why there is nothing to see.
        remarks: How the pictures differ from what the loss sees.
    """

    entry: str
    bands: list[BandMaps] = field(default_factory=list)
    masks: list[list[Tensor]] = field(default_factory=list)
    weights: list[np.ndarray] = field(default_factory=list)
    prompt: dict[str, Any] = field(default_factory=dict)
    note: str = ''
    remarks: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class View:
    """An image as the models get it, and what each entry compares for it.

    Attributes:
        image: (H, W, 3), RGB.
        entries: In the order of the config.
    """

    image: np.ndarray
    entries: list[Seen]


@torch.no_grad()
def look(model: Any, data: Any, entries: Sequence[str] | None = None) -> View:
    """Runs teacher and student on one sample of a data set, without any change to the model or the random numbers.

    Args:
        model: A distilled student.
        data: One item of a data set: ``inputs`` and ``data_samples``.
        entries: Names of the entries to look at; all by default.
    """
    distillation = model.distillation
    chosen = [distillation.entry(name) for name in entries or list(distillation.entries)]
    with isolated_rng(seed=0), eval_mode(model), torch.autocast(_device(model).type, enabled=False):
        batch = model.data_preprocessor(pseudo_collate([data]), False)
        inputs, samples = batch['inputs'], batch['data_samples']
        size = (inputs.shape[-2], inputs.shape[-1])
        try:
            distillation.teacher.run(inputs, samples)
            with distillation.student_recorder:
                forward_features(model, inputs, samples)
            seen = []
            for entry in chosen:
                students = distillation.student_recorder.levels(entry.student_taps)
                teachers = distillation.teacher.levels(entry.teacher_taps)
                seen.append(compared_by(entry, *entry.compared(students, teachers, size)))
        finally:
            distillation.clear()
    return View(as_rgb(inputs[0], model.data_preprocessor), seen)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


@torch.no_grad()
def compared_by(entry: Any, students: Sequence[Tensor], teachers: Sequence[Tensor]) -> Seen:
    """Returns what an entry sees in the features that it compares.

    Args:
        entry: The entry.
        students: The student's levels after the connector.
        teachers: The teacher's levels.
    """
    seen = Seen(entry.name)
    if entry.logits:
        seen.note = 'it compares logits, which have no bands to show'
        return seen
    if any(s.shape != t.shape or s.dim() != 4 for s, t in zip_equal(students, teachers)):
        seen.note = 'it compares features of other shapes by itself'
        return seen
    students, teachers = [s.float() for s in students], [t.float() for t in teachers]
    loss = entry.losses[0]
    if not getattr(loss, 'compares_low', True):
        seen.remarks.append('The low band has no weight in this loss: it is shown, but not distilled.')
    if isinstance(loss, BandLoss) and loss.standardises:
        seen.remarks.append('The loss standardises over a batch, these pictures over their own image.')
    seen.bands = [band_maps(s, t, loss) for s, t in zip_equal(students, teachers)]
    generator = getattr(loss, 'masks', None)
    if generator is not None and getattr(generator, 'has_prompt', True):
        grouping: Any = getattr(generator, 'grouping', 'level')
        found = [mask for mask in generator(teachers) if mask is not None]
        seen.masks = [[group[0].cpu() for group in mask_groups(mask, grouping)] for mask in found]
        places = {f'level {level}': groups for level, groups in enumerate(seen.masks)}
        file = getattr(generator, 'file', None)
        seen.prompt = (file.measured if file is not None else None) or of_masks(places, grouping)
    if getattr(loss, 'gate', None) is not None:
        seen.weights = [weight[0].float().cpu().numpy() for weight in loss.gate(students, teachers)]
    return seen


def band_maps(student: Tensor, teacher: Tensor, loss: nn.Module | None = None) -> BandMaps:
    """Returns the bands of the first image (N, C, H, W), normalised as in the loss."""
    ours, theirs = (dwt2d(features[:1], getattr(loss, 'levels', LEVELS)) for features in (student, teacher))
    maps = BandMaps([], [], [])
    for own, other in zip_equal(_listed(ours), _listed(theirs)):
        if getattr(loss, 'standardises', True):
            own, other = _standardised(own), _standardised(other)
        for found, band in ((maps.teacher, other), (maps.student, own), (maps.difference, own - other)):
            found.append(band[0].abs().mean(0).cpu().numpy())
    return maps


def _standardised(band: Tensor) -> Tensor:
    """Returns a band (1, C, h, w) with mean 0 and deviation 1 in each channel; 0 where it is constant."""
    band = band - band.mean((2, 3), keepdim=True)
    return band * band.square().mean((2, 3), keepdim=True).clamp(min=TINY).rsqrt()


def _listed(bands: WaveletBands) -> list[Tensor]:
    return [bands.low, *(band for detail in bands.high for band in detail)]
