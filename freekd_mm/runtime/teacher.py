"""The teacher: a frozen feature extractor outside of the student's parameters, and its outputs on disk."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Dict, Tuple

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn

from freekd_mm.checkpoints.fitting import load_whole, weights_of
from freekd_mm.checkpoints.loading import load_checkpoint_file
from freekd_mm.checkpoints.sources import fetch
from freekd_mm.checks import check_choice, check_options
from freekd_mm.compat.versions import is_autocast_enabled, zip_equal
from freekd_mm.files import write_atomically
from freekd_mm.runtime.config import build_empty, load_config
from freekd_mm.runtime.foreign import LIBRARIES, build_foreign
from freekd_mm.runtime.foreign import OPTIONS as FOREIGN_OPTIONS
from freekd_mm.runtime.preprocess import PreprocessBridge
from freekd_mm.runtime.taps import Tap, TapRecorder

#: Name of a teacher that is given none.
TEACHER = 'teacher'
SOURCES = ('cfg_path', 'model', *LIBRARIES)
OPTIONS = ('name', 'cfg_path', 'model', 'checkpoint', 'allow_random', 'allow_mismatch', 'dtype', 'outputs', *LIBRARIES)
Outputs = Dict[str, Tuple[Tensor, ...]]
#: How far the outputs of a picture may be from those in another batch, as a share of the largest.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 1e-2}
DTYPES = {'fp32': None, 'bf16': torch.bfloat16, 'fp16': torch.float16}


class SharedOutputs:
    """Keeps the levels of each picture in a file; several processes may share the folder.

    They are the teacher's outputs up to rounding, because a batch of other pictures may round differently. Another
    teacher, precision or list of taps has its own files.
    """

    def __init__(self, folder: str | Path, model: nn.Module, taps: Sequence[Tap]) -> None:
        self.taps = tuple(dict.fromkeys(taps))
        digest = hashlib.sha256()
        for key, value in model.state_dict().items():
            digest.update(f'{key} {value.dtype}'.encode())
            digest.update(value.float().cpu().numpy().tobytes())
        # Options without weights too: 'blocks', 'size'.
        digest.update(' '.join([*map(str, self.taps), getattr(model, 'made_of', '')]).encode())
        self.folder = Path(folder) / digest.hexdigest()[:12]
        self._checked = False

    def __call__(self, inputs: Tensor, data_samples: Any, run: Callable[[Tensor, Any], Outputs]) -> Outputs:
        """Returns the levels of a batch (N, 3, H, W) by tap, from the files if all exist, else from ``run``."""
        files = [self._file(image, sample) for image, sample in zip(inputs, data_samples or [None] * len(inputs))]
        if all(file.is_file() for file in files):
            pictures = [torch.load(file, map_location=inputs.device, weights_only=True) for file in files]
            return {key: tuple(torch.stack(same) for same in zip(*(p[key] for p in pictures))) for key in pictures[0]}
        outputs = run(inputs, data_samples)
        if not self._checked:
            self._check(outputs, run(inputs[-1:], data_samples[-1:] if data_samples else None), len(inputs))
        for index, file in enumerate(files):
            own = {key: tuple(level[index].clone() for level in levels) for key, levels in outputs.items()}
            write_atomically(file, lambda part, own=own: torch.save(own, part))  # type: ignore[misc]
        return outputs

    def _file(self, image: Tensor, sample: Any) -> Path:
        shape = getattr(sample, 'img_shape', None)
        half = is_autocast_enabled(image.device.type)
        text = f'{tuple(image.shape)} {tuple(shape) if shape else None} {half}'.encode()
        name = hashlib.sha256(image.cpu().contiguous().numpy().tobytes() + text).hexdigest()
        return self.folder / name[:2] / f'{name[2:32]}.pth'

    def _check(self, outputs: Outputs, alone: Outputs, pictures: int) -> None:
        """Raises an error unless the last picture has the same outputs in its batch and alone."""
        for key, levels in outputs.items():
            for level, own in zip(levels, alone[key]):
                near = TOLERANCE.get(level.dtype, 0.0) * float(level.abs().max())
                if len(level) != pictures or not torch.allclose(level[-1:].float(), own.float(), rtol=0, atol=near):
                    raise ValueError(
                        f"teacher.outputs needs outputs that depend on each picture alone, but those at '{key}' do "
                        "not; leave 'outputs' out of the teacher"
                    )
        self._checked = True


class _Reached(Exception):  # noqa: N818 - not an error: it ends the forward pass after the last tap
    """All taps of the teacher have been recorded."""


def computes_in(dtype: torch.dtype, device: torch.device) -> bool:
    """Tells whether a device computes in a half precision itself."""
    # A CPU without such instructions emulates them, and takes some twenty times as long as in float32.
    if device.type != 'cpu':
        return True
    name = {torch.bfloat16: 'bf16', torch.float16: 'fp16'}[dtype]
    supported = getattr(torch.ops.mkldnn, f'_is_mkldnn_{name}_supported', None)
    return supported is not None and bool(supported())


class FrozenTeacher:
    """Runs a teacher in eval mode, without gradient, only as far as its last tapped module.

    It is not an ``nn.Module``, so it is not a part of the student's parameters, of the optimizer, of DDP's
    buckets, of the checkpoint, and ``train()`` of the student does not change it. A deep copy of the student
    (EMA) shares it.

    Args:
        model: The built teacher, weights loaded.
        taps: Places to record.
        dtype: ``'fp32'``, or ``'bf16'``/``'fp16'`` to store and run the teacher in half precision. On a CPU that
            would only emulate it, the rounded weights run in float32.
        bridge: What turns the student's normalised images into those that it gets.
        outputs: Folder to share the outputs of each picture between runs, see :class:`SharedOutputs`.
    """

    def __init__(
        self,
        model: nn.Module,
        taps: Sequence[Tap],
        dtype: str = 'fp32',
        bridge: PreprocessBridge | None = None,
        outputs: str | None = None,
    ) -> None:
        check_choice('teacher dtype', dtype, DTYPES)
        model.eval()  # returns nothing in some models
        self.model = model.requires_grad_(False)
        self.wanted = self.dtype = DTYPES[dtype]
        if self.dtype is not None:
            self.model.to(self.dtype)
        self.bridge = bridge
        self.recorder = TapRecorder(self.model, taps, 'teacher', self._stop_when_complete)
        self.shared = SharedOutputs(outputs, model, taps) if outputs else None
        self._found: Outputs | None = None
        #: How often each tapped module runs in a whole forward pass, None before the probe has counted it.
        self.runs: dict[str, int] | None = None

    def __deepcopy__(self, memo: dict) -> FrozenTeacher:
        return self

    def _follow(self, device: torch.device) -> None:
        """Moves the teacher to where the images are, no matter what wrapped or moved the student."""
        parameter = next(self.model.parameters(), None)
        if parameter is not None and parameter.device != device:
            self.model.to(device)
        dtype = self.wanted if self.wanted is not None and computes_in(self.wanted, device) else None
        if dtype != self.dtype:
            self.dtype = dtype
            self.model.to(dtype or torch.float32)

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The classes that the teacher was trained for, if its checkpoint names them."""
        return named_classes(self.model)

    def _stop_when_complete(self) -> None:
        counts = self.recorder.counts()
        if self.runs is not None and all(counts[path] >= max(runs, 1) for path, runs in self.runs.items()):
            raise _Reached

    @torch.no_grad()
    def run(self, inputs: Tensor, data_samples: Any = None) -> None:
        """Fills the recorder from a batch of images with the teacher's normalisation, (N, 3, H, W)."""
        self._follow(inputs.device)
        if self.shared is not None and self.runs is not None:
            self._found = self.shared(inputs.float(), data_samples, self._outputs)
        else:
            self._forward(inputs.float(), data_samples)

    def _outputs(self, inputs: Tensor, data_samples: Any) -> Outputs:
        assert self.shared is not None
        self.recorder.clear()
        self._forward(inputs, data_samples)
        return {str(tap): self.recorder.levels([tap]) for tap in self.shared.taps}

    def _forward(self, inputs: Tensor, data_samples: Any) -> None:
        with self.recorder, self.autocast(inputs.device), contextlib.suppress(_Reached):
            forward_features(self.model, inputs.to(self.dtype or inputs.dtype), data_samples)

    def autocast(self, device: torch.device) -> torch.autocast:
        """Returns the precision that the teacher's modules run in."""
        # Also for a half precision teacher: so float32 values that a model makes (position encodings) still fit.
        half = self.dtype is not None or is_autocast_enabled(device.type)
        return torch.autocast(device.type, dtype=self.dtype, enabled=half)

    def levels(self, taps: Sequence[Tap]) -> tuple[Tensor, ...]:
        """Returns the recorded levels."""
        if self._found is not None:
            return tuple(level for tap in taps for level in self._found[str(tap)])
        return self.recorder.levels(taps)

    def clear(self) -> None:
        """Drops the recorded tensors."""
        self.recorder.clear()
        self._found = None


def forward_features(model: Any, inputs: Tensor, data_samples: Any = None) -> None:
    """Runs a model forward without losses: a detector, a segmenter, a classifier or a bare backbone."""
    if isinstance(getattr(model, 'semi_test_cfg', None), dict):
        # mmdet's semi-supervised detectors run one of their two detectors outside of training, and both may be tapped.
        model.teacher(inputs, data_samples, mode='tensor')
        model.student(inputs, data_samples, mode='tensor')
    elif isinstance(model, BaseModel):
        model(inputs, data_samples, mode='tensor')
    else:
        model(inputs)


def named_teachers(teacher: dict | Sequence[dict]) -> dict[str, dict]:
    """Returns the options of each teacher by name; one alone needs none."""
    teachers = [teacher] if isinstance(teacher, dict) else teacher
    if not isinstance(teachers, (list, tuple)) or not all(isinstance(options, dict) for options in teachers):
        raise TypeError(f'teacher should be a dict with {", ".join(OPTIONS)}, or a list of such, but got {teacher!r}')
    names = [options.get('name', TEACHER) for options in teachers]
    if not names or len(set(names)) < len(names):
        raise ValueError(
            "several teachers should have a 'name' each, which entries give with of='<name>', but got "
            f'{", ".join(map(repr, names)) or "no teacher"}'
        )
    return dict(zip_equal(names, teachers))


def teacher_options(text: str, checkpoint: str | None = None) -> dict[str, str]:
    """Returns the options of a teacher that is named in one word: ``'transformers:<name>'``, or a config."""
    library, colon, name = text.partition(':')
    is_config = not colon or name.startswith(':') or text.endswith('.py')
    if not is_config:
        check_choice(f'what is before the colon of the teacher {text!r}', library, LIBRARIES)
    named = {'cfg_path': text} if is_config else {library: name}
    return {**named, 'checkpoint': checkpoint} if checkpoint is not None else named


def build_teacher(teacher: dict) -> tuple[nn.Module, str]:
    """Builds the teacher's model and loads its weights.

    ``teacher`` has ``cfg_path`` (a config file, or ``'mmdet::...'``) or ``model`` (inline config), or is of another
    library, see :func:`freekd_mm.runtime.foreign.build_foreign`. Returns also where the weights are from, in words.
    """
    sources = [key for key in SOURCES if key in teacher]
    foreign = bool(sources) and sources[0] in LIBRARIES
    check_options('teacher', teacher, (*OPTIONS, *FOREIGN_OPTIONS) if foreign else OPTIONS)
    if len(sources) != 1:
        raise ValueError(
            f'teacher should have one of {", ".join(map(repr, SOURCES))}, but got {", ".join(teacher) or "nothing"}'
        )
    if foreign:
        return build_foreign(sources[0], teacher)
    checkpoint = teacher.get('checkpoint')
    if not checkpoint and not teacher.get('allow_random', False):
        raise ValueError(
            "teacher should have a 'checkpoint' (a file or a URL), but got none. "
            'To distil from an untrained teacher on purpose, set allow_random=True.'
        )
    model = build_empty(load_config(teacher['cfg_path']) if 'cfg_path' in teacher else {'model': teacher['model']})
    if checkpoint:
        return model, load_weights(model, checkpoint, bool(teacher.get('allow_mismatch', False)))
    return model, 'RANDOM weights (allow_random=True)'


def named_classes(model: nn.Module) -> tuple[str, ...] | None:
    """Returns the classes that the checkpoint of a model names."""
    classes = getattr(model, 'dataset_meta', {}).get('classes')
    return tuple(map(str, classes)) if isinstance(classes, (list, tuple)) else None


def load_weights(model: nn.Module, checkpoint: str, allow_mismatch: bool = False) -> str:
    """Loads a checkpoint into a model, as data only, and raises an error unless it fits.

    Of a URL, official names contain the hash, which is checked after the download. ``allow_mismatch`` accepts missing
    keys and other shapes if most of the model is covered. Returns a line that says what was loaded.
    """
    file = load_checkpoint_file(fetch(checkpoint))
    fit = load_whole(model, weights_of(file, checkpoint), checkpoint, allow_mismatch)
    # As mmdet's and mmseg's init functions do; older files have the names in capitals, those of mmcv 1.x in ``meta``.
    meta = file.get('meta') or {} if isinstance(file, dict) else {}
    found = meta.get('dataset_meta') or {'CLASSES': meta.get('CLASSES')}
    model.dataset_meta = {key.lower(): value for key, value in found.items()}  # type: ignore[assignment]
    return f'{checkpoint} ({fit.share:.0%} of {fit.count} weights)'
