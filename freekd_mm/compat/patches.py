"""Every change that freekd_mm makes to other packages and to objects that are not its own, with the reason.

:data:`PATCHES` act on the whole process and are made by :func:`freekd_mm.compat.install`. The others act on one runner,
model or data loader that was given to us, for one run. Their modules, and the tests that show what they are for:

- ``runtime.model``: the student's class, to add the losses; its module names stay, so that checkpoints, learning rates
  and hooks of the user's config still fit (tests/runtime/test_model.py).
- ``runtime.taps``: ``forward`` of tapped modules during a step. mmdet and mmseg call heads by it, which runs no hooks
  (tests/runtime/test_taps.py).
- ``engine.checkpoint_hook``: the class of the checkpoint hook, and its file backend while the best checkpoint is saved.
  mmengine removes old checkpoints before the new one is written (tests/engine/test_reliability_checkpoints.py).
- ``engine.exact``: the training's data loader is built early, and its class, generator and data set's ``__getitems__``
  seed each sample by its place; the loop's ``run_iter`` and iterator start at the place of a resume. mmengine saves
  neither random states nor the place in an epoch (tests/engine/test_reliability_resume.py).
- ``engine.nonfinite``: the model's ``parse_losses``; ``backward`` and ``step`` of the optimizer wrapper. mmengine has
  no hook between the backward pass and the step (tests/engine/test_reliability_nonfinite.py).
- ``engine.signals``: the answer to SIGTERM, also in forked children, and ``worker_init_fn`` of the data loaders: they
  must live until a run that is told to stop has saved (tests/engine/test_reliability_signals.py).
- ``engine.process``: ``_log_env`` and ``dump_config`` of the runner while one is built, else an error would stand below
  hundreds of lines of config, and a refused resume would change the record (tests/test_wrong_tools.py). At the end of a
  run, mmengine's table of visualizers, and the workers of the data loaders: the next run would log into the folder of
  the last one, and wait 5 s for each worker (tests/configs/test_two_stages.py).
- ``stage1.hook``: ``load_from`` and ``resume`` of the runner, ``requires_grad`` of the teacher. One hook turns the
  teacher's config into the training of its prompt (tests/stage1/test_prompt_hook.py).
- ``stage1.recipe``: optimizer, schedulers, loops, log processor and checkpoint hook of the runner, ``init_weights`` of
  the teacher. The prompt alone is trained, for its own number of iterations (tests/stage1/test_recipe.py).
"""

from __future__ import annotations

import logging
import os
from typing import Any, Callable

import mmengine.runner.runner
import torch
from mmengine.config import utils
from mmengine.fileio import LocalBackend, get_file_backend
from mmengine.logging import print_log
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import checkpoint as checkpoints
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from freekd_mm.checkpoints.fitting import PREFIX, load_what_fits
from freekd_mm.checkpoints.loading import load_checkpoint_file
from freekd_mm.checkpoints.saving import save_atomically
from freekd_mm.checkpoints.sources import fetch
from freekd_mm.compat import mmrazor
from freekd_mm.compat.versions import installed_version, torch_at_least
from freekd_mm.log import warn
from freekd_mm.text import some

#: Set to 1, it leaves the patches out.
SWITCH = 'FREEKD_MM_NO_PATCHES'


def install_patches() -> None:
    """Makes all :data:`PATCHES`, or says what does not hold without them if :data:`SWITCH` is 1."""
    if os.environ.get(SWITCH) == '1':
        lost = '; '.join(lost for lost, _ in PATCHES.values())
        warn(f'{SWITCH}=1 leaves out the changes to other packages, so: {lost}')
        return
    for make in PATCHES:
        make()


def find_configs_of_forks() -> None:
    """Changes ``MODULE2PACKAGE``: the onedl line's mmengine looks for its ``onedl-mmsegmentation`` by the old name."""
    if installed_version('onedl-mmsegmentation') and not installed_version('mmsegmentation'):
        utils.MODULE2PACKAGE['mmseg'] = 'mmseg'


def load_only_data() -> None:
    """Changes the checkpoint loader: on PyTorch >= 2.6 mmengine 0.10.7 cannot read its own checkpoints.

    Before that it runs the code in a file, and the forks fall back to that.
    """
    loader: Any = checkpoints.CheckpointLoader
    loader.register_scheme(prefixes=('', 'http://', 'https://'), loader=load_checkpoint, force=True)
    # 'torchvision://', 'open-mmlab://' and 'mmcls://' end in this function.
    vars(checkpoints)['load_from_http'] = load_checkpoint


def load_checkpoint(filename: str, map_location: Any = None, **kwargs: Any) -> Any:
    """Loads a file, also from the web; renames ``meta['config']``, which mmengine runs as Python when it resumes."""
    # Only mmcv 1.x wrote that.
    content = load_checkpoint_file(fetch(filename), map_location=map_location)
    meta = content.get('meta') if isinstance(content, dict) else None
    if isinstance(meta, dict) and 'config' in meta:
        meta['cfg'] = meta.pop('config')
    return content


def save_whole() -> None:
    """Changes ``save_checkpoint``, which writes into the old file: a crash or a full disk destroys both."""
    original = checkpoints.save_checkpoint

    def save_checkpoint(
        checkpoint: dict,
        filename: str | os.PathLike,
        file_client_args: dict | None = None,
        backend_args: dict | None = None,
    ) -> None:
        remote = '://' in str(filename) or file_client_args is not None
        if remote or not isinstance(get_file_backend(filename, backend_args=backend_args), LocalBackend):
            original(checkpoint, filename, file_client_args, backend_args)
        else:
            save_atomically(checkpoint, filename)

    for module in (checkpoints, mmengine.runner, mmengine.runner.runner):
        vars(module)['save_checkpoint'] = save_checkpoint


def say_what_fits() -> None:
    """Changes ``load_state_dict``: each weight that does not fit has a line of its own in mmengine's log."""
    original = checkpoints.load_state_dict

    def load_state_dict(module: Any, state_dict: Any, strict: bool = False, logger: Any = None) -> None:
        while is_model_wrapper(module) or isinstance(module, BaseTTAModel):
            module = module.module
        if strict or any(is_model_wrapper(part) for part in module.modules()):
            original(module, state_dict, strict, logger)
            return
        fit = load_what_fits(module, state_dict)
        # A plain student has no use for what its distillation added.
        unused = [name for name in fit.unused if not name.startswith(PREFIX)]
        if unused or not fit.is_whole:
            loaded = f'{fit.share:.0%} of the {fit.count} weights of {fit.model} were loaded'
            print_log(f'{loaded}; {fit}; unused: {some(unused)}', logger or 'current', logging.WARNING)

    for place in (checkpoints, mmengine.runner):
        vars(place)['load_state_dict'] = load_state_dict


def normalize_on_cpu() -> None:
    """Changes ``SyncBatchNorm.forward``, which refuses the CPU before PyTorch 2.1; there it is plain ``BatchNorm``."""
    forward = torch.nn.SyncBatchNorm.forward
    if torch_at_least(2, 1) or forward.__module__ == __name__:
        return

    def either(self: torch.nn.SyncBatchNorm, input: Tensor) -> Tensor:
        return forward(self, input) if input.is_cuda else _BatchNorm.forward(self, input)

    torch.nn.SyncBatchNorm.forward = either  # type: ignore[method-assign]


#: What does not hold without each of them, and the test that fails when it is no longer needed.
PATCHES: dict[Callable[[], None], tuple[str, str]] = {
    find_configs_of_forks: (
        "with the onedl line, configs cannot inherit 'mmseg::...'",
        'tests/compat/test_patches.py::test_configs_of_forks_are_still_not_found',
    ),
    load_only_data: (
        'load_from, init_cfg and --resume of mmengine load files as PyTorch does, which may fail or run code in them',
        'tests/compat/test_patches.py::test_loader_is_still_needed',
    ),
    save_whole: (
        'a checkpoint can be damaged by a crash or a full disk while it is written',
        'tests/compat/test_patches.py::test_saver_is_still_needed',
    ),
    say_what_fits: (
        'load_from and init_cfg print one line per weight that does not fit',
        'tests/compat/test_patches.py::test_what_does_not_fit_still_takes_many_lines',
    ),
    mmrazor.install: (
        'mmrazor does not import on PyTorch >= 2.0 or with mmcv > 2.1.0',
        'tests/compat/test_mmrazor.py::test_stand_in_is_still_needed',
    ),
    normalize_on_cpu: (
        'models with SyncBN cannot be wired, or looked at by make_config, on PyTorch before 2.1',
        'tests/compat/test_patches.py::test_sync_bn_still_refuses_the_cpu',
    ),
}
