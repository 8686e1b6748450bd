"""What the losses of a distilled student see for an image: the compared features, their bands, masks and weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from torch import Tensor, nn

from freekd_mm.checkpoints.fitting import load_whole, weights_of
from freekd_mm.checkpoints.loading import load_checkpoint_file
from freekd_mm.compat.versions import zip_equal
from freekd_mm.datasets.unlabelled import check_picture
from freekd_mm.frequency import dwt2d
from freekd_mm.losses.bands.distance import TINY
from freekd_mm.losses.bands.loss import BandLoss
from freekd_mm.prompts.masks import mask_groups, named_groups
from freekd_mm.runtime.config import build_model, default_scope, is_distilled, type_name
from freekd_mm.runtime.preprocess import as_rgb
from freekd_mm.runtime.probe import eval_mode, find_pipeline
from freekd_mm.runtime.rng import isolated_rng
from freekd_mm.runtime.teacher import forward_features
from freekd_mm.stage1.selectivity import of_masks

#: For losses without wavelets: enough to show what differs.
LEVELS = 3
#: Steps of a pipeline that read what an image alone does not have.
ANNOTATIONS = ('LoadAnnotations', 'LoadPanopticAnnotations', 'LoadProposals', 'FilterAnnotations')


class BandMaps(NamedTuple):
    """The bands of one feature level of one image, each as a map of its strength (h, w): the mean of |band| over C.

    The low band is first, then horizontal, vertical and diagonal detail from the finest level on.
    """

    teacher: list[np.ndarray]
    student: list[np.ndarray]
    difference: list[np.ndarray]  # the mean of |student - teacher|


@dataclass
class Seen:
    """What one entry of the distillation compares for one image."""

    entry: str  # its name
    teacher: str = 'teacher'  # with its name if it has one
    bands: list[BandMaps] = field(default_factory=list)  # by feature level; empty without maps of one shape
    before: list[BandMaps] = field(default_factory=list)  # of the student as its training started, if it is compared
    masks: dict[str, dict[str, Tensor]] = field(default_factory=dict)  # (T, h, w) by level and group of bands
    weights: list[np.ndarray] = field(default_factory=list)  # by level, those of the channels (C,)
    prompt: dict[str, Any] = field(default_factory=dict)  # how selective it is: as stage 1, or these masks, tell
    note: str = ''  # why there is nothing to see
    remarks: list[str] = field(default_factory=list)  # how the pictures differ from what the loss sees


class View(NamedTuple):
    """An image as the models get it, and what each entry compares for it."""

    image: np.ndarray  # (H, W, 3), RGB
    entries: list[Seen]  # in the order of the config


@torch.no_grad()
def look(model: Any, data: Any) -> View:
    """Runs a distilled student and its teacher on one item of a data set; model and random numbers stay as they are."""
    distillation = model.distillation
    device = next(model.parameters()).device
    with isolated_rng(seed=0), eval_mode(model), torch.autocast(device.type, enabled=False):
        batch = model.data_preprocessor(pseudo_collate([data]), False)
        inputs, samples = batch['inputs'], batch['data_samples']
        size = (inputs.shape[-2], inputs.shape[-1])
        try:
            distillation.run_teachers(distillation.entries.values(), inputs, samples)
            with distillation.student_recorder:
                forward_features(model, inputs, samples)
            seen = []
            for entry in map(distillation.entry, distillation.entries):
                students = distillation.student_recorder.levels(entry.student_taps)
                teachers = entry.teacher.levels(entry.teacher_taps)
                seen.append(compared_by(entry, *entry.compared(students, teachers, size)))
        finally:
            distillation.clear()
    return View(as_rgb(inputs[0], model.data_preprocessor), seen)


@torch.no_grad()
def compared_by(entry: Any, students: Sequence[Tensor], teachers: Sequence[Tensor]) -> Seen:
    """Returns what an entry sees in the levels of student (after the connector) and teacher."""
    seen = Seen(entry.name, entry.teacher_name)
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
    if generator is not None:
        grouping: Any = getattr(generator, 'grouping', 'level')
        seen.masks = {
            f'level {level}': named_groups([group[0].cpu() for group in mask_groups(mask, grouping)], grouping)
            for level, mask in enumerate(generator(teachers))
            if mask is not None
        }
        file = getattr(generator, 'file', None)
        seen.prompt = (file.measured if file is not None else None) or of_masks(seen.masks)
    if getattr(loss, 'gate', None) is not None:
        seen.weights = [weight[0].float().cpu().numpy() for weight in loss.gate(students, teachers)]
    return seen


def band_maps(student: Tensor, teacher: Tensor, loss: nn.Module | None = None) -> BandMaps:
    """Returns the bands of the first image (N, C, H, W), normalised as in the loss."""
    maps = BandMaps([], [], [])
    ours, theirs = (_bands(features[:1], loss) for features in (student, teacher))
    for own, other in zip_equal(ours, theirs):
        for found, band in zip_equal(maps, (other, own, own - other)):
            found.append(band[0].abs().mean(0).cpu().numpy())
    return maps


def _bands(features: Tensor, loss: nn.Module | None) -> Iterator[Tensor]:
    """Yields the bands (1, C, h, w), where the loss does so with mean 0 and deviation 1 in each channel."""
    bands, standardises = dwt2d(features, getattr(loss, 'levels', LEVELS)), getattr(loss, 'standardises', True)
    bands = bands.inside() if standardises else bands
    for band in (bands.low, *(band for detail in bands.high for band in detail)):
        if standardises:
            centred = band - band.mean((2, 3), keepdim=True)
            yield centred * centred.square().mean((2, 3), keepdim=True).clamp(min=TINY).rsqrt()
        else:
            yield band


def compare(cfg: Config, checkpoint: str | Path, data: Sequence[Any], before: bool = False) -> list[View]:
    """Looks at each sample with the student of a checkpoint, and if asked also as its training started."""
    if not is_distilled(cfg.model):
        raise ValueError(
            f"config should be a distillation config, with model=dict(type='freekd_mm.DistilledModel', ...), but its "
            f'model is {cfg.model.get("type")!r}; write one with tools/make_config.py'
        )
    with default_scope(cfg.get('default_scope')), isolated_rng(cfg.get('randomness', {}).get('seed') or 0):
        model = build_model(cfg.model, cfg.get('default_scope')).eval()
        first = []
        if before:
            model.init_weights()  # type: ignore[operator]
            first = [look(model, item) for item in data]
        load_whole(model, weights_of(load_checkpoint_file(checkpoint), checkpoint), checkpoint)
        views = [look(model, item) for item in data]
    for view, old in zip(views, first):
        for seen, own in zip_equal(view.entries, old.entries):
            seen.before = own.bands
    return views


def read_images(cfg: Config, files: Sequence[str | Path]) -> list[Any]:
    """Reads image files through the config's test pipeline, without annotations."""
    for file in files:
        check_picture(file)
    pipeline = find_pipeline(cfg.get('test_dataloader')) or find_pipeline(cfg.get('val_dataloader'))
    if not pipeline:
        raise ValueError('config should have a test_dataloader or val_dataloader, which says how images are read')
    steps = [step for step in pipeline if type_name(step) not in ANNOTATIONS]
    with default_scope(cfg.get('default_scope')):
        compose = Compose(copy.deepcopy(steps))
        return [compose({'img_path': str(file), 'img_id': index}) for index, file in enumerate(files)]
