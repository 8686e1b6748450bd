"""A teacher's outputs on disk: for each picture they are computed once, for all runs that see the picture."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Dict, Tuple

import torch
from torch import Tensor, nn

from freekd_mm.files import write_atomically
from freekd_mm.runtime.taps import Tap

Outputs = Dict[str, Tuple[Tensor, ...]]
#: How far outputs of one picture and of a batch may differ, relative to the largest: only their rounding differs.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 1e-2}


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
        digest.update(' '.join(map(str, self.taps)).encode())
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
        text = f'{tuple(image.shape)} {tuple(shape) if shape else None}'.encode()
        name = hashlib.sha256(image.cpu().contiguous().numpy().tobytes() + text).hexdigest()
        return self.folder / name[:2] / f'{name[2:32]}.pth'

    def _check(self, batch: Outputs, last: Outputs, size: int) -> None:
        """Makes sure that the stored outputs of a picture depend only on this picture."""
        self._checked = True
        for key, levels in batch.items():
            for level, own in zip(levels, last[key]):
                fits = level.shape[0] == size and own.shape[0] == 1 and level.shape[1:] == own.shape[1:]
                limit = TOLERANCE.get(level.dtype, 0.0) * float(level[-1:].abs().max()) if fits else 0.0
                if not fits or float((level[-1:].float() - own.float()).abs().max()) > limit:
                    raise ValueError(
                        f"teacher.outputs needs outputs that depend on each picture alone, but those at '{key}' do "
                        'not; leave it out'
                    )
