"""``DistilledModel``: a student that learns from a teacher, and is otherwise the student.

The student is not wrapped. It keeps its class (a subclass of it, to be exact), its module names and its
methods, so everything in the user's config that concerns the student still works. Its checkpoint has the keys of the
plain student; only ``distillation.*`` is added.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmengine.config import ConfigDict
from mmengine.model import BaseModel
from torch import nn

from freekd_mm.checkpoints.fitting import PREFIX
from freekd_mm.compat import install
from freekd_mm.compat.versions import cache
from freekd_mm.registry import MODELS
from freekd_mm.runtime.config import build_model
from freekd_mm.runtime.distillation import Distillation, is_unlabelled
from freekd_mm.runtime.rng import isolated_rng


class DistilledMixin:
    """Adds the distillation losses to a student's own. ``distillation`` is set by :func:`DistilledModel`."""

    distillation: Distillation
    task_loss: bool = True
    #: Whether distillation is over; the name is that of mmrazor's StopDistillHook, which sets it.
    distillation_stopped: bool = False

    def loss(self, inputs: Any, data_samples: Any = None, **kwargs: Any) -> dict:
        """Returns the student's losses, if the batch has labels, and ``distill.loss_<name>`` of every entry."""
        labelled = not is_unlabelled(data_samples)

        def student_loss() -> dict:
            if self.task_loss and labelled:
                return super(DistilledMixin, self).loss(inputs, data_samples, **kwargs)  # type: ignore[misc]
            self.forward(inputs, data_samples, mode='tensor')  # type: ignore[attr-defined]
            return {}

        return self.distillation.run(student_loss, inputs, data_samples, labelled)

    def init_weights(self) -> None:
        """Initialises only the student, as without distillation: a rule of its ``init_cfg`` sees no connector.

        What it inherits replaces its own.
        """
        distillation = self._modules.pop('distillation')  # type: ignore[attr-defined]
        try:
            super().init_weights()  # type: ignore[misc]
        finally:
            self._modules['distillation'] = distillation  # type: ignore[attr-defined]
        self.load_state_dict(self.distillation.inherited, strict=False)  # type: ignore[attr-defined]
        self.distillation.inherited = {}

    @property
    def teacher(self) -> nn.Module:
        """The (first) teacher's model, or the student's own teacher if it has one, as semi-supervised detectors do."""
        return self._modules.get('teacher') or self.distillation.teacher.model  # type: ignore[attr-defined]


@cache
def distilled_class(student: type) -> type:
    """Returns the subclass of a student's class that distils."""
    return type(f'Distilled{student.__name__}', (DistilledMixin, student), {'__module__': student.__module__})


@MODELS.register_module()
def DistilledModel(  # noqa: N802 - built by config like a class
    architecture: dict,
    teacher: dict | Sequence[dict],
    distill: dict,
    task_loss: bool = True,
    inherit: Sequence[str] = (),
    probe_size: tuple[int, int] | None = None,
    data_preprocessor: dict | None = None,
) -> BaseModel:
    """Builds a student and lets it learn from a teacher.

    With all weights zero the training is bit for bit that of the plain student: the student is built first,
    and nothing here draws from the random numbers that it sees.

    Args:
        architecture: The student's model config.
        teacher: ``cfg_path`` or ``model``, and ``checkpoint``; or a list of such, with a ``name`` each.
        distill: Entries by name: ``dict(wavelet=dict(student='neck', teacher='neck', loss=dict(...)))``.
        task_loss: Compute the student's own losses. False only distils.
        inherit: Modules that start with the teacher's weights of the same names: ``('neck', 'bbox_head')``.
            A checkpoint that is loaded or resumed replaces them.
        probe_size: Height and width of the dummy image that finds the shapes at the taps; by default one that both
            models take.
        data_preprocessor: The student's if its own config has none; mmengine passes it on from the top level.

    Returns:
        An instance of the student's class, with ``distillation`` attached.
    """
    install()
    architecture = ConfigDict(architecture)
    if data_preprocessor is not None:
        architecture.setdefault('data_preprocessor', data_preprocessor)
    student = build_model(architecture)
    if not isinstance(student, BaseModel) or not hasattr(student, 'loss'):
        raise TypeError(
            f"architecture should be a detector, segmenter or classifier with a 'loss' method, but got "
            f'{type(student).__name__}; for a bare backbone use freekd_mm.FeatureEncoder'
        )
    with isolated_rng():
        distillation = Distillation(student, teacher, distill, probe_size, inherit)
    student.__class__ = distilled_class(type(student))  # type: ignore[arg-type]
    student.distillation = distillation
    student.task_loss = task_loss
    return student


def student_state_dict(state: dict) -> dict:
    """Returns the plain student's part of a distilled student's state dict."""
    return {key: value for key, value in state.items() if not key.startswith(PREFIX)}
