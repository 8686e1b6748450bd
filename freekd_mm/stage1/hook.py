"""Stage 1 of FreeKD: a hook that turns a teacher's training config into the training of its frequency prompt."""

from __future__ import annotations

import logging
import os.path as osp
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook, EMAHook, Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.optim import AmpOptimWrapper, build_optim_wrapper
from mmengine.runner import IterBasedTrainLoop, Runner
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from freekd_mm.checks import check_positive
from freekd_mm.compat.versions import remove_prefix
from freekd_mm.engine.distributed import unwrapped_model
from freekd_mm.pictures import mask_pictures
from freekd_mm.prompts.masks import Grouping
from freekd_mm.prompts.prompt_file import PROMPT_FILE, PromptFile, prompt_content, save_prompt
from freekd_mm.registry import HOOKS
from freekd_mm.stage1.bank import OutputRecorder, PromptBank, as_items, is_feature_map
from freekd_mm.stage1.origin import TeacherOrigin, plain, versions

#: Name of the prompts among the teacher's children.
CHILD = 'frequency_prompt'


@HOOKS.register_module()
class FrequencyPromptHook(Hook):
    """Trains a frequency prompt instead of the model: add it to a teacher's training config, and that is stage 1.

    ``custom_hooks = [dict(type='freekd_mm.FrequencyPromptHook')]`` and ``load_from = '<teacher checkpoint>'``
    are all that a detector's config needs. Before training the hook

    1. freezes the model: no parameter gets a gradient; batch norms, dropouts and stochastic depth stay in eval mode
       whenever the model is set to training;
    2. plugs one prompt behind each output of the named modules and makes them a child of the model,
       ``frequency_prompt``;
    3. wraps the model for DDP once more, so that the buckets hold the prompts' tokens and nothing else, and builds
       the optimizer from these tokens alone;
    4. replaces the loop by ``max_iters`` iterations with a cosine schedule, without validation by default, and drops
       a moving average of the weights.

    ``lambda * dissimilarity`` joins the losses as ``loss_prompt_dissimilarity``. Checkpoints hold the prompt, its
    optimizer and the teacher's name and hash, not the teacher; training resumes from them. At the end the prompt
    file and pictures of its masks are written.

    Args:
        modules: Modules whose outputs get prompts: a path, or a list. ``'neck'`` takes all its levels,
            ``'neck[1:3]'`` or ``'backbone[3]'`` some.
        num_tokens: Tokens a band.
        levels: Wavelet levels.
        wavelet: The wavelet.
        grouping: ``'level'`` or ``'band'``, see :class:`freekd_mm.prompts.FrequencyPrompt`.
        dissimilarity: ``'jaccard'`` (paper) or ``'dice'`` (released code).
        weight: lambda, the factor on the dissimilarity (mean over all prompts and bands, in (0, 1]).
        init_std: Standard deviation of the tokens at the start.
        max_iters: Iterations. With Adam, learning rate 0.01 and weight decay 1e-3, cosine to 1e-6: the schedule of
            the authors' sibling method.
        optimizer: Config of another optimizer.
        min_lr: Learning rate at the end of the cosine.
        val_interval: Evaluate the prompted teacher every so many iterations; None for never.
        checkpoint_interval: Iterations between checkpoints; a quarter of ``max_iters`` by default.
        out_file: The prompt file; ``<work_dir>/frequency_prompt.pth`` by default.
        pictures: Write pictures of the masks beside the prompt file.
        probe_size: Height and width of the dummy image that finds the channels.
        allow_random_teacher: Train the prompt of an untrained teacher, which only tests need.
    """

    # Before every hook that looks at the model, the loop or the optimizer.
    priority = 'VERY_HIGH'

    def __init__(
        self,
        modules: str | Sequence[str] = 'neck',
        num_tokens: int = 2,
        levels: int = 3,
        wavelet: str = 'haar',
        grouping: Grouping = 'level',
        dissimilarity: Literal['jaccard', 'dice'] = 'jaccard',
        weight: float = 1.0,
        init_std: float = 0.02,
        max_iters: int = 2000,
        optimizer: dict | None = None,
        min_lr: float = 1e-6,
        val_interval: int | None = None,
        checkpoint_interval: int | None = None,
        out_file: str | None = None,
        pictures: bool = True,
        probe_size: tuple[int, int] = (128, 128),
        allow_random_teacher: bool = False,
    ) -> None:
        check_positive('weight', weight, zero=True)
        check_positive('max_iters', max_iters, integer=True)
        check_positive('min_lr', min_lr, zero=True)
        for name, value in (('val_interval', val_interval), ('checkpoint_interval', checkpoint_interval)):
            if value is not None:
                check_positive(name, value, integer=True)
        self.modules = [modules] if isinstance(modules, str) else list(modules)
        self.options = dict(
            num_tokens=num_tokens,
            levels=levels,
            wavelet=wavelet,
            grouping=grouping,
            dissimilarity=dissimilarity,
            init_std=init_std,
        )
        PromptBank({'check': {0: 1}}, weight, **self.options)  # raises for a wrong option before anything is built
        self.weight = weight
        self.max_iters, self.min_lr = max_iters, min_lr
        self.optimizer = optimizer or dict(type='Adam', lr=0.01, weight_decay=1e-3)
        self.val_interval = val_interval
        self.checkpoint_interval = checkpoint_interval or max(1, max_iters // 4)
        self.out_file, self.pictures = out_file, pictures
        self.probe_size = probe_size
        self.allow_random_teacher = allow_random_teacher

    # ------------------------------------------------------------------ before training

    def before_run(self, runner: Runner) -> None:
        """Freezes the model, plugs the prompts, and rebuilds what refers to its parameters."""
        wrapped = is_model_wrapper(runner.model)
        if type(runner) is not Runner or (wrapped and not isinstance(runner.model, DistributedDataParallel)):
            raise TypeError(
                'FrequencyPromptHook should run with mmengine.runner.Runner, on one process or with '
                f'DistributedDataParallel, but got {type(runner).__name__} and {type(runner.model).__name__}'
            )
        model = runner.model.module if wrapped else runner.model
        if hasattr(model, CHILD):
            raise ValueError(f'the config should have one FrequencyPromptHook, but {type(model).__name__} has {CHILD}')
        self.origin = TeacherOrigin.of_runner(runner, model, self.allow_random_teacher)
        self.bank = PromptBank(self._find_channels(model), self.weight, **self.options)
        self.bank.to(next(model.parameters()).device)
        model.requires_grad_(False)
        self.always_eval = [module for module in model.modules() if _behaves_otherwise_in_training(module)]
        model.add_module(CHILD, self.bank)
        self.bank.attach(model)
        if wrapped:
            runner.model = runner.wrap_model(runner.cfg.get('model_wrapper_cfg'), model)
        self._replace_optimizer(runner)
        self._replace_loop(runner)
        places = ', '.join(f'{module}{sorted(levels)}' for module, levels in self.bank.channels.items())
        count = sum(parameter.numel() for parameter in self.bank.parameters())
        print_log(
            f'frequency prompt: {count} parameters behind {places} train for {self.max_iters} iterations; the '
            f'teacher {type(model).__name__} is frozen',
            'current',
        )

    def _find_channels(self, model: nn.Module) -> dict[str, dict[int, int]]:
        """Runs a dummy image to find the channels of every prompted output."""
        from freekd_mm.runtime.probe import probe_model
        from freekd_mm.runtime.taps import check_module, parse_taps

        taps = parse_taps(self.modules)
        for tap in taps:
            check_module(model, tap.path, 'teacher')
        recorder = OutputRecorder(model, [tap.path for tap in taps])
        probe_model(model, cast(Any, recorder), self.probe_size)
        channels: dict[str, dict[int, int]] = {}
        for tap in taps:
            if not recorder.outputs[tap.path]:
                raise RuntimeError(
                    f"modules: '{tap.path}' should run in the forward pass of {type(model).__name__}, but did not; "
                    "name a module that is called as such, like 'neck' or 'backbone'"
                )
            if len(recorder.outputs[tap.path]) > 1:
                raise ValueError(
                    f"modules: '{tap.path}' should run once in a forward pass, so that each level has a prompt of "
                    f'its own, but runs {len(recorder.outputs[tap.path])} times; name a module before it'
                )
            items = as_items(recorder.outputs[tap.path][0])
            numbers = list(range(len(items)))
            picked = tap.select(numbers)
            for index in picked if isinstance(picked, list) else [picked]:
                if not is_feature_map(items[index]):
                    raise TypeError(
                        f"modules: '{tap.path}' should give feature maps (N, C, H, W), but item {index} of its output "
                        f'is a {type(items[index]).__name__}; name another module, or items as in '
                        f"'{tap.path}[0]'"
                    )
                channels.setdefault(tap.path, {})[index] = items[index].shape[1]
        return channels

    def _replace_optimizer(self, runner: Runner) -> None:
        cfg: dict[str, Any] = dict(type='OptimWrapper', optimizer=self.optimizer)
        if isinstance(runner.optim_wrapper, AmpOptimWrapper):
            dtype = runner.optim_wrapper.cast_dtype
            cfg = dict(cfg, type='AmpOptimWrapper', loss_scale='dynamic')
            cfg['dtype'] = remove_prefix(str(dtype), 'torch.') if dtype is not None else None
        runner.optim_wrapper = build_optim_wrapper(self.bank, cfg)

    def _replace_loop(self, runner: Runner) -> None:
        loop = runner.train_loop
        interval = self.val_interval or self.max_iters
        runner._train_loop = IterBasedTrainLoop(
            runner, loop.dataloader, max_iters=self.max_iters, val_interval=interval
        )
        if self.val_interval is None:
            runner._val_loop = None
        runner.param_schedulers = runner.build_param_scheduler(
            dict(type='CosineAnnealingLR', T_max=self.max_iters, eta_min=self.min_lr, by_epoch=False)
        )
        runner.log_processor.by_epoch = False
        for hook in list(runner.hooks):
            if isinstance(hook, CheckpointHook):
                hook.by_epoch, hook.interval = False, self.checkpoint_interval
                hook.filename_tmpl = 'iter_{}.pth'
            elif isinstance(hook, EMAHook):
                # In place: the runner is walking over this list.
                runner._hooks.remove(hook)
                print_log('frequency prompt: EMAHook is left out', 'current', logging.WARNING)

    def before_train(self, runner: Runner) -> None:
        """Loads the teacher, after the runner initialised and resumed what it wanted to."""
        model = unwrapped_model(runner)
        del model._modules[CHILD]
        self.origin.load(model)
        model.add_module(CHILD, self.bank)

    # ------------------------------------------------------------------ training

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Sets norms and dropouts back to eval mode, which the loop's ``train()`` has just changed."""
        for module in self.always_eval:
            module.training = False
        self.bank.keep_masks = self.pictures and runner.iter == self.max_iters - 1

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        """Checks that the prompts were reached; after the last step draws their masks."""
        if outputs is not None and 'loss_prompt_dissimilarity' not in outputs:
            raise RuntimeError(
                f'modules: {", ".join(self.modules)} should run in the losses of the teacher, but did not; name '
                'modules that the forward pass in training calls'
            )
        if self.bank.kept and is_main_process():
            from freekd_mm.runtime.preprocess import as_rgb

            preprocess: Any = unwrapped_model(runner).data_preprocessor
            with torch.no_grad():
                image = as_rgb(preprocess(data_batch, True)['inputs'][0], preprocess)
            folder = self._path(runner).with_suffix('')
            mask_pictures(image, self.bank.kept, folder)
            print_log(f'pictures of the masks are in {folder}', 'current')
        self.bank.kept = {}

    def after_train(self, runner: Runner) -> None:
        """Writes the prompt file."""
        if is_main_process():
            path = save_prompt(self._file(runner), self._path(runner))
            print_log(f'the frequency prompt is in {path}', 'current')

    # ------------------------------------------------------------------ checkpoints

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Leaves the teacher out of the checkpoint, and puts its name and hash in."""
        prefix = f'{CHILD}.'
        checkpoint['state_dict'] = {
            name: value for name, value in checkpoint['state_dict'].items() if name.startswith(prefix)
        }
        checkpoint[CHILD] = prompt_content(self._file(runner))

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Fills the teacher's weights in, so that the runner does not report each of them as missing."""
        if CHILD in checkpoint:
            self.origin.check_resumed(checkpoint[CHILD])
            checkpoint['state_dict'] = {**unwrapped_model(runner).state_dict(), **checkpoint['state_dict']}

    # ------------------------------------------------------------------ helpers

    def _path(self, runner: Runner) -> Path:
        return Path(self.out_file or osp.join(runner.work_dir, PROMPT_FILE))

    def _file(self, runner: Runner) -> PromptFile:
        names = ('levels', 'wavelet', 'grouping', 'num_tokens')
        options: dict[str, Any] = {name: self.options[name] for name in names}
        return PromptFile(
            tokens=self.bank.tokens(),
            **options,
            teacher=self.origin.source,
            teacher_sha256=self.origin.sha256,
            versions=versions(),
            schedule=plain(
                dict(
                    max_iters=self.max_iters,
                    optimizer=self.optimizer,
                    min_lr=self.min_lr,
                    weight=self.weight,
                    dissimilarity=self.options['dissimilarity'],
                    init_std=self.options['init_std'],
                )
            ),
        )


def _behaves_otherwise_in_training(module: nn.Module) -> bool:
    """Tells whether a frozen module still changes with the mode: norms with statistics, dropout, stochastic depth."""
    kinds = (
        nn.modules.batchnorm._NormBase,
        nn.modules.dropout._DropoutNd,
        nn.MultiheadAttention,  # its dropout is a number, not a module
    )
    name = type(module).__name__
    # By name what other packages bring: mmcv's SyncBatchNorm, DropPath, StochasticDepth.
    return isinstance(module, kinds) or any(part in name for part in ('BatchNorm', 'Drop', 'StochasticDepth'))
