"""Every change that freekd_mm makes to other packages and to objects that are not its own, with the reason.

:data:`PATCHES` act on the whole process and are made by :func:`freekd_mm.compat.install`. :data:`CHANGES` act on one
runner, model or data loader that was given to us, in the module that is named, for one run.
"""

from __future__ import annotations

import os
from typing import Callable, NamedTuple

from freekd_mm.compat import mmengine, mmrazor, pytorch
from freekd_mm.log import warn

#: Set to 1, it leaves the patches out.
SWITCH = 'FREEKD_MM_NO_PATCHES'


class Patch(NamedTuple):
    """A change of the whole process."""

    changes: str
    reason: str
    #: What does not hold without it.
    lost: str
    #: The test that fails when the change is no longer needed.
    until: str
    make: Callable[[], None]


class Change(NamedTuple):
    """A change of one object that was given to us, in a module of ours."""

    where: str
    changes: str
    reason: str
    test: str


PATCHES = (
    Patch(
        'mmengine.config.utils.MODULE2PACKAGE',
        "the onedl line's mmengine looks for configs of mmseg in a distribution that has another name there",
        "with the onedl line, configs cannot inherit 'mmseg::...'",
        'tests/compat/test_patches.py::test_configs_of_forks_are_still_not_found',
        mmengine.find_configs_of_forks,
    ),
    Patch(
        'mmengine.runner.CheckpointLoader and mmengine.runner.checkpoint.load_from_http',
        "mmengine 0.10.7 cannot read its own checkpoints on PyTorch >= 2.6, runs a file's code before, and the forks "
        'fall back to that',
        'load_from, init_cfg and --resume of mmengine load files as PyTorch does, which may fail or run code in them',
        'tests/compat/test_patches.py::test_loader_is_still_needed',
        mmengine.load_as_data,
    ),
    Patch(
        'mmengine.runner.save_checkpoint',
        'mmengine writes into the old file: a crash or a full disk destroys both',
        'a checkpoint can be damaged by a crash or a full disk while it is written',
        'tests/compat/test_patches.py::test_saver_is_still_needed',
        mmengine.save_whole,
    ),
    Patch(
        'mmengine.runner.load_state_dict',
        'mmengine prints one line per weight that does not fit, which hides what happened',
        'load_from and init_cfg print one line per weight that does not fit',
        'tests/compat/test_patches.py::test_what_does_not_fit_still_takes_many_lines',
        mmengine.say_what_fits,
    ),
    Patch(
        'sys.meta_path: mmrazor.structures.quantization and the version of mmcv that mmrazor/__init__.py sees',
        'mmrazor 1.0.0 imports what PyTorch 2.0 removed, and accepts mmcv up to 2.1.0',
        'mmrazor does not import on PyTorch >= 2.0 or with mmcv > 2.1.0',
        'tests/compat/test_mmrazor.py::test_stand_in_is_still_needed',
        mmrazor.install,
    ),
    Patch(
        'torch.nn.SyncBatchNorm.forward',
        'PyTorch before 2.1 refuses it on the CPU, where the models of mmseg, which have it, are looked at',
        'models with SyncBN cannot be wired, or looked at by make_config, on PyTorch before 2.1',
        'tests/compat/test_patches.py::test_sync_bn_still_refuses_the_cpu',
        pytorch.normalize_on_cpu,
    ),
)

CHANGES = (
    Change(
        'runtime.model',
        '__class__ of the student: a subclass that adds the distillation losses',
        "the student keeps its module names, so checkpoints, learning rates and hooks of the user's config still fit",
        'tests/runtime/test_model.py',
    ),
    Change(
        'runtime.taps',
        'forward of the tapped modules, during a step',
        'mmdet and mmseg call heads by their forward method, which runs no hooks',
        'tests/runtime/test_taps.py',
    ),
    Change(
        'engine.checkpoint_hook',
        '__class__ of the checkpoint hook, and its file backend while the best checkpoint is saved',
        'mmengine removes old checkpoints before the new one is written',
        'tests/engine/test_reliability_checkpoints.py',
    ),
    Change(
        'engine.exact',
        "the train data loader is built early; the loop's run_iter and dataloader_iterator, after a resume",
        'mmengine saves neither random states nor the place in an epoch',
        'tests/engine/test_reliability_resume.py',
    ),
    Change(
        'engine.seeding',
        '__class__ and generator of the train data loader, and __getitems__ of its data set',
        'each sample is loaded with the seed of its place in the run',
        'tests/engine/test_reliability_resume.py',
    ),
    Change(
        'engine.nonfinite',
        'parse_losses of the model; backward and step of the optimizer wrapper',
        'mmengine has no hook between the backward pass and the step',
        'tests/engine/test_reliability_nonfinite.py',
    ),
    Change(
        'engine.signals',
        'the answer to SIGTERM during a training, also in forked children; worker_init_fn of the data loaders',
        'a run that is told to stop saves first, and its data loading processes must live until then',
        'tests/engine/test_reliability_signals.py',
    ),
    Change(
        'engine.process',
        'Runner._log_env and dump_config while one is built: its config goes to the log alone, and is dumped later',
        'an error would stand below hundreds of lines of config, and a refused resume would change the record',
        'tests/test_wrong_tools.py',
    ),
    Change(
        'engine.process',
        "mmengine's table of visualizers, and the workers of the data loaders, at the end of a run",
        'the next run in this process would log into the folder of the last one, and wait 5 s for each worker',
        'tests/configs/test_two_stages.py',
    ),
    Change(
        'stage1.hook',
        "the runner's load_from and resume; requires_grad of the teacher",
        'one hook turns the config of a teacher into the training of its prompt; load_from names the teacher there',
        'tests/stage1/test_prompt_hook.py',
    ),
    Change(
        'stage1.recipe',
        "the runner's optimizer, schedulers, loops, log processor and checkpoint hook",
        'the prompt alone is trained, for its own number of iterations',
        'tests/stage1/test_recipe.py',
    ),
    Change(
        'stage1.teacher',
        'init_weights of the teacher does nothing any more',
        "its weights are loaded by then, and the runner's initialisation would fill some of them again",
        'tests/stage1/test_prompt_hook.py',
    ),
)


def install_patches() -> None:
    """Makes all :data:`PATCHES`, or says what does not hold without them if :data:`SWITCH` is 1."""
    if os.environ.get(SWITCH) == '1':
        lost = '; '.join(patch.lost for patch in PATCHES)
        warn(f'{SWITCH}=1 leaves out what freekd_mm changes, so: {lost}')
        return
    for patch in PATCHES:
        patch.make()
