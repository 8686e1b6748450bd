"""Distillation from Python, for notebooks: what make_config.py, train.py and export_student.py do, in one call."""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from freekd_mm.compat import install

if TYPE_CHECKING:
    from mmengine.config import Config

    from freekd_mm.report.runs import Run
    from freekd_mm.runtime.export import Export


class Distilled(NamedTuple):
    """What :func:`distill` made."""

    student: Path  # the plain student's weights, for ``DetInferencer`` and all that loads the student's own config
    metrics: dict[str, float]  # what the evaluation of this checkpoint measured, as the evaluator names it
    checkpoint: Path  # the training checkpoint that the student is from
    config: Path  # of the distillation
    work_dir: Path  # logs and all checkpoints


def distill(
    student: str | os.PathLike,
    teacher: str | os.PathLike,
    checkpoint: str | os.PathLike | None = None,
    method: str = 'best',
    work_dir: str | os.PathLike | None = None,
    wizard: dict[str, Any] | None = None,
    **overrides: Any,
) -> Distilled:
    """Writes a distillation config, trains it, and exports the student.

    Args:
        student: The student's config: a file, or like ``'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'``.
        teacher: The teacher's, or ``'transformers:<name>'``, ``'timm:<name>'``, ``'module:<package.module:Class>'``.
        checkpoint: The teacher's checkpoint, a file or a URL; of timm and transformers the library's own by default.
        method: As ``--method`` of ``tools/make_config.py``.
        work_dir: Where all is written; ``work_dirs/<student>_<method>`` by default. Files of an earlier call are kept.
        wizard: Other options of :func:`freekd_mm.wizard.make_config.plan_config`, like ``dict(features=['neck'])``.
        overrides: Settings of the config, like ``train_cfg=dict(max_epochs=3)``.
    """
    install()
    from freekd_mm.runtime.export import export_student
    from freekd_mm.wizard.make_config import plan_config
    from freekd_mm.wizard.methods import prompt_modes

    name = f'{Path(student).stem}_{method}'
    folder = Path(work_dir) if work_dir is not None else Path('work_dirs') / name
    config = folder / f'{name.replace("+", "_")}.py'
    trains = prompt_modes(method) and 'prompt' not in (wizard or {})
    options = {**({'prompt_dir': folder / f'{method}_prompt'} if trains else {}), **(wizard or {})}
    weights = None if checkpoint is None else str(checkpoint)
    plan_config(str(student), str(teacher), weights, method, config, **options).write(force=True)
    run, trained, cfg = _train(config, folder, overrides, 'distill')
    exported = export_student(cfg, trained, folder / 'student.pth')
    metrics = next((found for step, found in run.evaluations.items() if trained.stem.endswith(f'_{step}')), {})
    return Distilled(exported.path, metrics, trained, config, folder)


def pretrain(
    student: str | os.PathLike,
    folder: str | os.PathLike | Sequence[str | os.PathLike],
    teacher: str | dict[str, Any],
    work_dir: str | os.PathLike | None = None,
    checkpoint: str | os.PathLike | None = None,
    neck: bool = False,
    epochs: int = 10,
    size: int = 224,
    batch_size: int = 32,
    **overrides: Any,
) -> dict[str, Path]:
    """Distils a backbone from a teacher on pictures without labels.

    Args:
        student: Config of the model whose backbone is trained.
        folder: The pictures, see :class:`freekd_mm.ImageFolder`.
        teacher: ``'transformers:<name>'``, ``'timm:<name>'``, ``'module:<package.module:Class>'``, or a config; or the
            options of a teacher as a dict.
        work_dir: Where all is written; ``work_dirs/<student>_pretrain`` by default.
        checkpoint: The teacher's weights, if they are not the library's own.
        neck: Train the neck too.
        epochs: Passes through the pictures.
        size: Side of the crops.
        batch_size: Crops in a batch.
        overrides: Settings of the config, like ``optim_wrapper=dict(optimizer=dict(lr=2e-3))``.

    Returns:
        The files ``backbone.pth`` (and ``neck.pth``) by the names of their modules, for the ``init_cfg`` of each:
        ``init_cfg=dict(type='Pretrained', checkpoint=...)``.
    """
    install()
    from freekd_mm.files import check_output, write_kept
    from freekd_mm.runtime.export import export_parts, export_student
    from freekd_mm.runtime.teacher import teacher_options
    from freekd_mm.wizard.pretrain import pretrain_source

    out = Path(work_dir) if work_dir is not None else Path('work_dirs') / f'{Path(student).stem}_pretrain'
    config = out / 'pretrain.py'
    check_output(config, [student], force=True)
    weights_file = None if checkpoint is None else str(checkpoint)
    own = dict(teacher) if isinstance(teacher, dict) else teacher_options(teacher, weights_file)
    write_kept(config, pretrain_source(str(student), folder, own, neck, epochs, size, batch_size))
    _, weights, cfg = _train(config, out, overrides, 'pretrain')
    export_student(cfg, weights, out / 'student.pth')
    return export_parts(out / 'student.pth', out)


def _train(config: Path, folder: Path, overrides: dict[str, Any], what: str) -> tuple[Run, Path, Config]:
    """Trains a config in a folder; returns what was logged, the best checkpoint, and the config with the overrides."""
    from mmengine.config import Config

    from freekd_mm.engine.preflight import check_keys
    from freekd_mm.engine.training import run
    from freekd_mm.report.runs import read_run

    cfg = Config.fromfile(config)
    check_keys(cfg, overrides, f'overrides of {what}')
    cfg.merge_from_dict(overrides)
    cfg.work_dir = str(folder)
    # mmengine names a run by the second, and two runs of one name in a notebook would share their log.
    cfg.setdefault('experiment_name', f'{config.stem}-{uuid.uuid4().hex}')
    run(cfg, check=True)
    logged = read_run(folder, config.stem)
    if logged.checkpoint is None:
        raise FileNotFoundError(f'the training should leave a checkpoint in {folder}, but did not: see default_hooks')
    return logged, logged.checkpoint, cfg


def export(
    config: str | os.PathLike,
    checkpoint: str | os.PathLike,
    out: str | os.PathLike,
    half: bool = False,
    images: int = 2,
    force: bool = False,
) -> Export:
    """Writes the plain student of a training checkpoint, and checks that it predicts the same.

    Args:
        config: The distillation config.
        checkpoint: A checkpoint written in training.
        out: The file to write.
        half: Store the weights in half precision.
        images: How many test images to compare predictions on.
        force: Replace a file that a person made; it is kept with ``.bak`` after its name.
    """
    install()
    from freekd_mm.files import check_output
    from freekd_mm.runtime.config import load_config
    from freekd_mm.runtime.export import export_student

    check_output(out, [config, checkpoint], force)
    return export_student(load_config(str(config)), checkpoint, out, half=half, images=images)
