"""mmcv's source: downloaded, unpacked, and grouped so that the compiler reads PyTorch's headers only a few times."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from setup_env.steps import Command, Steps

#: Where mmcv's ``setup.py`` looks for ``*.cpp`` files.
OPERATORS = Path('mmcv/ops/csrc/pytorch')
#: Files of ``cpu/`` that define helpers of the same name: each starts its own group.
CLASHING = ('bezier_align.cpp', 'roi_align.cpp', 'roi_align_rotated.cpp', 'rotated_feature_align.cpp')
#: Files of ``cuda/`` that stay alone: they define what others define too. The other 35 can be in one.
CUDA_ALONE = re.compile(
    r'bias_act|carafe|filtered_lrelu|iou_(quadri|rotated)|iou3d|min_area|nms_(quadri|rotated)|_rotated_cuda|'
    r'roiaware|roipoint|sparse_|spconv|upfirdn2d|voxelization'
)
CUDA_GROUPS = 4
#: Its macros ``min`` and ``max`` change all that comes after it.
MACROS = 'psamask.cpp'
#: The first PyTorch whose headers are C++20; mmcv asks for C++17.
NEEDS_CPP20 = (2, 14)
#: No debug information, and no optimisation that costs a third of the time and gives nothing here. The others are
#: Python's own, which newer versions of setuptools replace by these.
FLAGS = '-DNDEBUG -fwrapv -O2 -g0'


def unpack(steps: Steps, command: Command, folder: Path, torch: str, grouped: bool = True) -> Path:
    """Downloads and unpacks the source; what an interrupted build compiled there is used again.

    Args:
        steps: Runs the download.
        command: pip's download command without the destination.
        folder: Where the archive and the source go.
        torch: Version of the PyTorch to compile for.
        grouped: Whether to group the files.
    """
    if not (folder / 'complete').exists():
        shutil.rmtree(folder, ignore_errors=True)
        steps.run([*command, '--dest', folder], 'mmcv-source')
        shutil.unpack_archive(str(next(folder.glob('*.tar.gz'))), folder)
        setup = next(folder.glob('*/setup.py'))
        if tuple(map(int, torch.split('.')[:2])) >= NEEDS_CPP20:
            setup.write_text(setup.read_text(encoding='utf-8').replace('-std=c++17', '-std=c++20'), encoding='utf-8')
        if grouped:
            group(setup.parent)
        (folder / 'complete').touch()
    return next(folder.glob('*/setup.py')).parent


def group(source: Path) -> None:
    """Makes 5 files out of mmcv's 77 for the CPU and 27 out of its 58 for a GPU (``*.cu``), which include the old ones.

    Nearly all of the time goes into PyTorch's headers, which each file reads again: about 15 s for each of 57 files,
    43 s for all of them in one.
    """
    bindings, kernels = source / OPERATORS, source / OPERATORS / 'cpu'
    _merge(sorted(bindings.glob('*.cpp')), bindings / 'grouped.cpp')
    files = sorted(kernels.glob('*.cpp'), key=lambda file: (file.name not in CLASHING, file.name == MACROS, file.name))
    for number in range(len(CLASHING)):
        _merge(files[number :: len(CLASHING)], kernels / f'grouped_{number}.cpp')
    gpu = source / OPERATORS / 'cuda'
    files = [file for file in sorted(gpu.glob('*.cu')) if not CUDA_ALONE.search(file.name)]
    for number in range(min(CUDA_GROUPS, len(files))):
        _merge(files[number::CUDA_GROUPS], gpu / f'grouped_{number}.cu')


def _merge(files: Sequence[Path], target: Path) -> None:
    """Hides ``files`` from ``setup.py`` and writes the file that includes them."""
    parts = [file.with_suffix('.part') for file in files]
    for file, part in zip(files, parts):
        file.rename(part)
    target.write_text(''.join(f'#include "{part.name}"\n' for part in parts), encoding='utf-8')
