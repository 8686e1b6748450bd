"""Whether any config can be distilled: one step of a student and a teacher of it, on two generated pictures.

``zoo.py`` runs it on the configs of both packages.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import init_default_scope
from mmengine.runner import set_random_seed
from mmengine.structures import InstanceData, PixelData
from scenes import Scene, render_scene
from torch import Tensor, nn

from freekd_mm.runtime.config import build_model, find_model, load_config, without_pretrained
from freekd_mm.runtime.export import export_student
from freekd_mm.runtime.probe import dummy_samples
from freekd_mm.runtime.wiring import without_vectors
from freekd_mm.wizard.make_config import plan_config

# Query based detectors find too few places on smaller pictures; some kernels need more even on the deepest level.
PICTURES = (256, 640)


def plain_step(config: str, picture: int = PICTURES[0]) -> dict[str, Any]:
    """Trains the plain model of a config for one step on pictures of a width.

    Returns:
        What the step found: its ``loss``.
    """
    cfg = load_config(config)
    model_cfg, scope = find_model(cfg)
    init_default_scope(scope or 'mmengine')
    model = _built(small(without_pretrained(model_cfg)), scope)
    return {'loss': _step(model, _losses(model, _has_masks(cfg), picture))}


def distilled_step(student: str, teacher: str, method: str = 'mse', picture: int = PICTURES[0]) -> dict[str, Any]:
    """Writes a config for student and teacher, trains it for one step, and exports the student.

    Args:
        student: The student's config.
        teacher: The teacher's, which gets random weights.
        method: A method of ``tools/make_config.py``.
        picture: Width of the pictures.

    Returns:
        ``compared``, the taps and shapes; ``gradients``, the norm of the gradient of the distillation loss alone at
        each of the student's levels; ``loss``; and ``exported``, how far the predictions of the exported student are
        from those of the plain one.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'kd.py'
        plan_config(student, teacher, 'none.pth', method, path, check=False, inherit=None).write()
        cfg = Config.fromfile(path)
        init_default_scope(cfg.get('default_scope') or 'mmengine')
        teacher_cfg = small(without_pretrained(find_model(load_config(teacher))[0]))
        cfg.model.teacher = dict(model={**teacher_cfg, '_scope_': cfg.get('default_scope')}, allow_random=True)
        cfg.model.architecture = small(without_pretrained(find_model(cfg)[0]))
        model = _built(cfg.model, cfg.get('default_scope'))
        for module in model.distillation.teacher.model.modules():
            # With random weights deep features vanish, unless norms take the statistics of the pictures at hand.
            module.training = isinstance(module, nn.modules.batchnorm._BatchNorm) and module.eps > 0
        levels: dict[str, tuple[Tensor, ...]] = {}
        for name, entry in model.distillation.entries.items():
            entry.register_forward_pre_hook(
                lambda _, inputs, name=name: levels.update({name: without_vectors(inputs[0])})
            )
        losses = _losses(model, _has_masks(cfg), picture)
        found: dict[str, Any] = {
            'compared': [row[1:] for entry in model.distillation.entries.values() for row in entry.rows],
            'gradients': {
                name: _gradients(losses[f'distill.loss_{name}'], features) for name, features in levels.items()
            },
        }
        found['loss'] = _step(model, losses)
        checkpoint = Path(folder) / 'step.pth'
        torch.save({'meta': {}, 'state_dict': model.state_dict()}, checkpoint)
        for loader in ('test_dataloader', 'val_dataloader'):
            cfg.pop(loader, None)
        cfg.model.probe_size = (_side(model, picture),) * 2
        found['exported'] = export_student(cfg, checkpoint, Path(folder) / 'student.pth', images=1).difference
        return found


def small(model: Any) -> Any:
    """Returns a model's config that takes small pictures: the preprocessor pads and scales to no size of its own."""
    if not model.get('data_preprocessor'):
        return model
    preprocessor = dict(model['data_preprocessor'])
    for key in ('size', 'batch_augments', 'size_divisor'):
        preprocessor.pop(key, None)
    if 'Seg' in str(preprocessor.get('type')):
        preprocessor['size_divisor'] = 32
    return {**model, 'data_preprocessor': preprocessor}


def _built(cfg: Any, scope: str | None) -> Any:
    """Builds a model with random weights, which are those of the plain model also in a distilled student."""
    set_random_seed(0)
    model: Any = build_model(cfg, scope)
    # Some models ask which step of the training it is.
    MessageHub.get_current_instance().update_info_dict({'epoch': 0, 'iter': 0})
    model.init_weights()
    return revert_sync_batchnorm(model)  # there is one process


def batch(model: nn.Module, size: int, masks: bool, count: int = 2) -> dict[str, list]:
    """Returns generated pictures with boxes, masks and label maps, as a data loader of mmdet or mmseg gives them."""
    scenes = [render_scene(0, index, size=size) for index in range(count)]
    counts: list[Any] = [getattr(module, 'num_classes', None) for module in model.modules()]
    classes = min([count for count in counts if isinstance(count, int)] or [2])
    samples = []
    for scene in scenes:
        (sample,) = dummy_samples(model, (size, size))
        _label(sample, scene, max(classes, 1), masks)
        samples.append(sample)
    return {
        'inputs': [torch.from_numpy(scene.image.transpose(2, 0, 1).copy()) for scene in scenes],
        'data_samples': samples,
    }


def _label(sample: Any, scene: Scene, classes: int, with_masks: bool) -> None:
    labels = torch.from_numpy(scene.labels.astype(np.int64))[None]
    # Some losses with a weight per class accept no pixels without a class.
    known = labels % classes
    if not hasattr(type(sample), 'gt_instances'):
        sample.gt_sem_seg = PixelData(data=known)
        sample.gt_edge_map = PixelData(data=(known != known.roll(1, -1)).long())
        return
    from mmdet.structures.mask import BitmapMasks

    sample.gt_sem_seg = PixelData(sem_seg=known)
    masks = np.stack([scene.instances == index for index in range(len(scene.classes))]).astype(np.uint8)
    size = scene.labels.shape
    boxes = [[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] for rows, columns in map(np.nonzero, masks)]
    found = torch.tensor(np.array(boxes), dtype=torch.float32)
    kinds = torch.tensor(scene.classes) % classes
    sample.gt_instances = InstanceData(bboxes=found, labels=kinds)
    sample.ignored_instances = InstanceData(bboxes=found[:0], labels=kinds[:0])
    if with_masks:
        sample.gt_instances.masks = BitmapMasks(masks, *size)
        sample.ignored_instances.masks = BitmapMasks(masks[:0], *size)
    sample.proposals = InstanceData(bboxes=found, scores=torch.ones(len(found)))


def _has_masks(cfg: Config) -> bool:
    """Whether a pipeline loads masks; models for boxes alone do not take them."""
    text = str(cfg.get('train_pipeline') or cfg.get('train_dataloader'))
    return "'with_mask': True" in text or 'LoadPanopticAnnotations' in text


def _side(model: nn.Module, picture: int) -> int:
    """Returns the width of the pictures: more than usual where a position encoding has a fixed size."""
    fixed = [getattr(module, 'img_size', 0) for module in model.modules()]
    return max([picture, *(max(size) if isinstance(size, (tuple, list)) else size for size in fixed if size)])


def _losses(model: Any, masks: bool, picture: int) -> dict[str, Any]:
    """Returns the losses of a model in training on the generated pictures."""
    model.train()
    set_random_seed(0)
    data: Any = batch(model, _side(model, picture), masks)
    if isinstance(getattr(model, 'semi_train_cfg', None), dict):
        data = {key: {part: value for part in ('sup', 'unsup_teacher', 'unsup_student')} for key, value in data.items()}
        for sample in data['data_samples']['sup']:
            sample.set_metainfo({'homography_matrix': np.eye(3, dtype=np.float32)})
    return model(**model.data_preprocessor(data, True), mode='loss')


def _step(model: Any, losses: dict[str, Any]) -> float:
    """Takes an optimizer step and returns the loss."""
    loss, _ = model.parse_losses(losses)
    optimizer = torch.optim.SGD([value for value in model.parameters() if value.requires_grad], lr=1e-4)
    loss.backward()
    optimizer.step()
    return float(loss)


def _gradients(loss: Tensor, levels: tuple[Tensor, ...]) -> list[float]:
    """Returns the norm of a loss's gradient at each level; 0 where it does not reach."""
    found = torch.autograd.grad(loss, levels, retain_graph=True, allow_unused=True)
    return [0.0 if gradient is None else float(gradient.norm()) for gradient in found]
