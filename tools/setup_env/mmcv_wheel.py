"""mmcv with its compiled operators: from the user's cache, ready-made, or built from source and then cached."""

from __future__ import annotations

import os
import re
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from setup_env.checks import check_headers, find_compiler
from setup_env.errors import SetupError
from setup_env.mmcv_source import FLAGS, unpack
from setup_env.steps import Steps, ask, compiled_files
from setup_env.venv import Venv

_DESCRIBE = """
import json, sys, sysconfig, torch
from torch.utils.cpp_extension import CUDA_HOME
gpu = torch.cuda.is_available()
print(json.dumps(dict(
    torch=torch.__version__, cuda=torch.version.cuda, gpu=gpu, nvcc=CUDA_HOME,
    arch=sorted({'%d%d' % torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count() if gpu else 0)}),
    python='cp%d%d' % sys.version_info[:2],
    platform=sysconfig.get_platform().replace('-', '_').replace('.', '_'),
    include=sysconfig.get_path('include'))))
"""
_TRY = """
import torch
from mmcv.ops import nms
boxes, scores = torch.tensor([[0.0, 0.0, 1.0, 1.0]], device='{device}'), torch.tensor([1.0], device='{device}')
assert nms(boxes, scores, 0.5)[0].shape == (1, 5)
print('true')
"""


@dataclass(frozen=True)
class Target:
    """What an mmcv wheel must fit.

    Attributes:
        name: ``'mmcv'`` or ``'onedl-mmcv'``.
        version: Of mmcv.
        torch: Version of PyTorch without its local part.
        device: ``'cpu'``, or e.g. ``'cu130-sm90'``: operators are compiled for the GPUs that are there.
        python: Tag such as ``'cp311'``.
        platform: Tag such as ``'linux_x86_64'``.
        include: Folder of Python's C headers.
    """

    name: str
    version: str
    torch: str
    device: str
    python: str
    platform: str
    include: str

    @property
    def key(self) -> str:
        """Name of the folder in the cache."""
        return f'{self.name}-{self.version}-torch-{self.torch}-{self.device}-{self.python}-{self.platform}'


def wheel_cache() -> Path:
    """Returns the user's folder of finished wheels, shared by all clones."""
    cache = os.environ.get('XDG_CACHE_HOME')
    return (Path(cache) if cache else Path.home() / '.cache') / 'freekd_mm' / 'wheels'


def is_cached(name: str, version: str, torch: str, python: tuple[int, int]) -> bool:
    """Whether the cache holds a wheel that could fit: asked before PyTorch is there."""
    torch = '*' if torch == 'installed' else torch.split('+')[0]
    return any(wheel_cache().glob(f'{name}-{version}-torch-{torch}-*-cp{python[0]}{python[1]}-*/*.whl'))


def describe(venv: Venv, name: str, version: str) -> Target:
    """Returns what mmcv must fit in ``venv``, which has PyTorch.

    Raises:
        SetupError: There is a GPU but no CUDA compiler for its operators.
    """
    found = ask(venv.python, _DESCRIBE)
    if found is None:
        raise SetupError(
            f'PyTorch in {venv.folder} cannot be imported',
            f'see why: {venv.python} -c "import torch"; then run make setup again',
        )
    device = 'cpu'
    if os.environ.get('FORCE_CUDA') == '1' or (found['gpu'] and os.environ.get('MMCV_CUDA') != '0'):
        if not found['nvcc']:
            raise SetupError(
                f'there is a GPU, but no CUDA compiler (nvcc) to compile mmcv for it; PyTorch has CUDA {found["cuda"]}',
                f'install the CUDA toolkit {found["cuda"]} and set CUDA_HOME; or, when the GPU is not to be used, '
                'MMCV_CUDA=0 make setup  (operators such as NMS then work on CPU tensors only)',
            )
        arch = re.sub(r'[ ;]+', '_', os.environ.get('TORCH_CUDA_ARCH_LIST', '')) or '_'.join(found['arch'])
        device = f'cu{(found["cuda"] or "").replace(".", "")}-sm{arch or "all"}'
    return Target(
        name, version, found['torch'].split('+')[0], device, found['python'], found['platform'], found['include']
    )


def works(venv: Venv, target: Target) -> bool:
    """Whether the installed mmcv runs one of its operators on the installed PyTorch, on the GPU where it should."""
    # FORCE_CUDA compiles for GPUs on a machine without one.
    on_gpu = target.device != 'cpu' and os.environ.get('FORCE_CUDA') != '1'
    return ask(venv.python, _TRY.format(device='cuda' if on_gpu else 'cpu')) is True


def install_mmcv(steps: Steps, venv: Venv, target: Target) -> None:
    """Installs mmcv from the first source that works; a wheel built here goes to the cache."""
    for wheel in sorted((wheel_cache() / target.key).glob('*.whl')):
        steps.say(f'      from the cache: {wheel}')
        if _install(steps, venv, wheel, target):
            return
        steps.say('      that wheel does not work here')
    ready = _ready_wheel(steps, venv, target)
    if ready and _install(steps, venv, ready, target):
        steps.say(f'      a ready-made wheel fits: {ready.name}')
        return
    built = _build(steps, venv, target)
    if not _install(steps, venv, built, target):
        raise SetupError(
            f'mmcv {target.version} was built, but its operators do not load',
            f'see why: {venv.python} -c "import mmcv.ops"; a compiler other than the one PyTorch was built with can be '
            'the reason (set CXX)',
            steps.log('mmcv-build'),
        )
    keep(built, target)
    shutil.rmtree(venv.folder / 'build', ignore_errors=True)


def keep(wheel: Path, target: Target) -> Path | None:
    """Puts a wheel into the cache, in one move, so that nobody sees an incomplete file.

    Returns:
        Its place there; None when the cache cannot be written; this does not stop the set-up.
    """
    place = wheel_cache() / target.key
    scratch = place / f'.{os.getpid()}.partial'
    try:
        place.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(wheel, scratch)
        return scratch.replace(place / wheel.name)
    except OSError as error:
        with suppress(OSError):
            scratch.unlink(missing_ok=True)
        Steps.say(f'      the wheel is not kept for other clones: {error}')
        return None


def wheel_page(target: Target) -> str | None:
    """Returns OpenMMLab's page of mmcv wheels for this PyTorch; the last one for mmcv 2.1.0 is PyTorch 2.1."""
    major, minor = (int(part) for part in target.torch.split('.')[:2])
    if target.name != 'mmcv' or (major, minor) > (2, 1):
        return None
    device = target.device.split('-')[0]
    return f'https://download.openmmlab.com/mmcv/dist/{device}/torch{major}.{minor}.0/index.html'


def _pip(venv: Venv, command: str) -> list[str | Path]:
    return [venv.python, '-m', 'pip', *command.split(), '--no-deps']


def _install(steps: Steps, venv: Venv, wheel: Path, target: Target) -> bool:
    try:
        steps.run([*_pip(venv, 'install --no-index --force-reinstall'), wheel], 'mmcv-install')
    except SetupError as error:
        if 'disk' in error.cause:
            raise
        return False
    return works(venv, target)


def _ready_wheel(steps: Steps, venv: Venv, target: Target) -> Path | None:
    folder, page = venv.folder / 'build' / 'ready', wheel_page(target)
    command = [*_pip(venv, 'download --only-binary=:all: --retries 1 --timeout 20'), '--dest', folder]
    command += ['--find-links', page] if page else []
    try:
        steps.run([*command, f'{target.name}=={target.version}'], 'mmcv-ready')
    except SetupError:
        return None
    return next(folder.glob('*.whl'), None)


def _build(steps: Steps, venv: Venv, target: Target) -> Path:
    compiler = find_compiler()
    check_headers(target.include)
    jobs = os.environ.get('MAX_JOBS') or str(_cores())
    steps.say(
        f'      no ready-made wheel fits, so it is compiled ({compiler}, {target.device}, {jobs} files at a time):'
    )
    steps.say(f'      1 to 3 minutes on 2 cores, once: the wheel is then kept in {wheel_cache()}')
    out = venv.folder / 'build' / 'wheel'
    flags = f'{os.environ.get("CFLAGS", "")} {FLAGS}'.strip()
    env = {'MMCV_WITH_OPS': '1', 'MAX_JOBS': jobs, 'CXX': compiler, 'CFLAGS': flags}
    if target.device == 'cpu':
        # mmcv compiles for the GPU whenever PyTorch sees one.
        env.update(FORCE_CUDA='0', CUDA_VISIBLE_DEVICES='')
    # pip's own cache would hand out a wheel built against another PyTorch.
    command = [*_pip(venv, 'wheel --verbose --no-build-isolation --no-cache-dir'), '--wheel-dir', out]
    download = [*_pip(venv, 'download --no-binary=:all: --no-build-isolation'), f'{target.name}=={target.version}']
    source = unpack(steps, download, venv.folder / 'build' / target.key, target.torch)
    _, code = steps.try_run([*command, source], 'mmcv-build', env=env, progress=compiled_files)
    if code:
        steps.say('      files in groups do not compile here, so each is compiled alone: 5 to 15 minutes')
        source = unpack(steps, download, venv.folder / 'build' / f'{target.key}-apart', target.torch, grouped=False)
        steps.run([*command, source], 'mmcv-build-apart', env=env, progress=compiled_files)
    return next(out.glob('*.whl'))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
