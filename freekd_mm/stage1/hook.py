"""Stage 1 of FreeKD: a hook that turns a teacher's training config into the training of its frequency prompt."""

from __future__ import annotations

import inspect
import os.path as osp
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch.nn.parallel import DistributedDataParallel

from freekd_mm.checks import check_options, check_positive
from freekd_mm.compat import install
from freekd_mm.engine.distributed import unwrapped_model
from freekd_mm.pictures import mask_pictures
from freekd_mm.prompts.prompt import FrequencyPrompt
from freekd_mm.prompts.prompt_file import NAME, PROMPT_FILE, PromptFile, plain, prompt_content, save_prompt, versions
from freekd_mm.registry import HOOKS
from freekd_mm.stage1.bank import PromptBank
from freekd_mm.stage1.places import find_channels
from freekd_mm.stage1.recipe import OPTIMIZER, default_iters, follow, stage1_recipe
from freekd_mm.stage1.teacher import load_teacher, teacher_and_resume_point


@HOOKS.register_module()
class FrequencyPromptHook(Hook):
    """Trains a frequency prompt instead of the model: add it to a teacher's training config, and that is stage 1.

    ``custom_hooks = [dict(type='freekd_mm.FrequencyPromptHook')]`` and ``load_from = '<teacher checkpoint>'``
    are all that a detector's config needs. Before training the hook

    1. loads the teacher and freezes it: no parameter gets a gradient; batch norms, dropouts and stochastic depth stay
       in eval mode whenever the model is set to training;
    2. plugs one prompt behind each output of the named modules and makes them a child of the model,
       ``frequency_prompt``;
    3. wraps the model for DDP once more, so that the buckets hold the prompts' tokens and nothing else;
    4. lets the runner follow the recipe of stage 1, see :func:`freekd_mm.stage1.recipe.stage1_recipe`: ``max_iters``
       iterations, an optimizer of the tokens alone, a cosine, no validation by default.

    ``lambda * dissimilarity`` joins the losses as ``loss_prompt_dissimilarity``. Checkpoints hold the prompt, its
    optimizer and the teacher's name and hash, not the teacher; training resumes from them. At the end the prompt
    file and pictures of its masks are written.

    Args:
        modules: Modules whose outputs get prompts: a path, or a list. ``'neck'`` takes all its levels,
            ``'neck[1:3]'`` or ``'backbone[3]'`` some.
        weight: lambda, the factor on the dissimilarity.
        max_iters: Iterations. By default a fifth of those that the config trains for, from 100 to 2000.
        optimizer: Config of another optimizer than Adam with learning rate 0.01 and weight decay 1e-3.
        min_lr: Learning rate at the end of the cosine.
        val_interval: Evaluate the prompted teacher every so many iterations; None for never.
        checkpoint_interval: Iterations between checkpoints; a quarter of ``max_iters`` by default.
        out_file: The prompt file; ``<work_dir>/frequency_prompt.pth`` by default.
        pictures: Write pictures of the masks beside the prompt file.
        probe_size: Height and width of the dummy image that finds the channels; by default one that the teacher takes.
        allow_random_teacher: Train the prompt of an untrained teacher, which only tests need.
        **prompt: Options of :class:`freekd_mm.prompts.FrequencyPrompt`.
    """

    # Before every hook that looks at the model, the loop or the optimizer.
    priority = 'VERY_HIGH'

    def __init__(
        self,
        modules: str | Sequence[str] = 'neck',
        weight: float = 1.0,
        max_iters: int | None = None,
        optimizer: dict | None = None,
        min_lr: float = 1e-6,
        val_interval: int | None = None,
        checkpoint_interval: int | None = None,
        out_file: str | None = None,
        pictures: bool = True,
        probe_size: tuple[int, int] | None = None,
        allow_random_teacher: bool = False,
        **prompt: Any,
    ) -> None:
        install()
        check_positive('weight', weight, zero=True)
        check_positive('min_lr', min_lr, zero=True)
        lengths = dict(max_iters=max_iters, val_interval=val_interval, checkpoint_interval=checkpoint_interval)
        for name, value in lengths.items():
            if value is not None:
                check_positive(name, value, integer=True)
        own = [name for name in inspect.signature(FrequencyPromptHook).parameters if name != 'prompt']
        options = [name for name in inspect.signature(FrequencyPrompt).parameters if name != 'channels']
        check_options('FrequencyPromptHook', prompt, [*own, *options])
        PromptBank({'check': {0: 1}}, weight, **prompt)  # raises for a wrong value before anything is built
        self.modules = [modules] if isinstance(modules, str) else list(modules)
        self.weight, self.prompt = weight, prompt
        self.optimizer, self.min_lr = optimizer or OPTIMIZER, min_lr
        self.max_iters, self.val_interval, self.checkpoint_interval = max_iters, val_interval, checkpoint_interval
        self.out_file, self.pictures = out_file, pictures
        self.probe_size = probe_size
        self.allow_random_teacher = allow_random_teacher

    # ------------------------------------------------------------------ before training

    def before_run(self, runner: Runner) -> None:
        """Loads and freezes the teacher, plugs the prompts in, and lets the runner follow the recipe."""
        wrapped = is_model_wrapper(runner.model)
        if type(runner) is not Runner or (wrapped and not isinstance(runner.model, DistributedDataParallel)):
            raise TypeError(
                'FrequencyPromptHook should run with mmengine.runner.Runner, on one process or with '
                f'DistributedDataParallel, but got {type(runner).__name__} and {type(runner.model).__name__}'
            )
        model = unwrapped_model(runner)
        if hasattr(model, NAME):
            raise ValueError(f'the config should have one FrequencyPromptHook, but {type(model).__name__} has {NAME}')
        source, point = teacher_and_resume_point(runner)
        runner._load_from, runner._resume = point, point is not None
        self.teacher, self.teacher_sha256 = load_teacher(model, source, self.allow_random_teacher)
        self.bank = PromptBank(find_channels(model, self.modules, self.probe_size), self.weight, **self.prompt)
        self.bank.plug_into(model)
        if wrapped:
            runner.model = runner.wrap_model(runner.cfg.get('model_wrapper_cfg'), model)
        if self.max_iters is None:
            self.max_iters = default_iters(runner.max_iters)
            print_log(
                f'frequency prompt: max_iters = {self.max_iters} follows from the {runner.max_iters} iterations that '
                'the config trains for',
                'current',
            )
        recipe = stage1_recipe(
            runner.cfg.get('optim_wrapper') or {},
            self.optimizer,
            self.max_iters,
            self.min_lr,
            self.val_interval,
            self.checkpoint_interval or max(1, self.max_iters // 4),
        )
        follow(runner, recipe, self.bank)
        places = ', '.join(f'{module}{sorted(levels)}' for module, levels in self.bank.channels.items())
        count = sum(parameter.numel() for parameter in self.bank.parameters())
        print_log(
            f'frequency prompt: {count} parameters behind {places} train for {self.max_iters} iterations; the '
            f'teacher {type(model).__name__} is frozen',
            'current',
        )

    # ------------------------------------------------------------------ training

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Keeps the masks of the last step, for the pictures."""
        self.bank.keep_masks = self.pictures and runner.iter == runner.max_iters - 1

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
        prefix = f'{NAME}.'
        checkpoint['state_dict'] = {
            name: value for name, value in checkpoint['state_dict'].items() if name.startswith(prefix)
        }
        checkpoint[NAME] = prompt_content(self._file(runner))

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Fills the teacher's weights in, so that the runner does not report each of them as missing."""
        if NAME in checkpoint:
            checkpoint['state_dict'] = {**unwrapped_model(runner).state_dict(), **checkpoint['state_dict']}

    # ------------------------------------------------------------------ helpers

    def _path(self, runner: Runner) -> Path:
        return Path(self.out_file or osp.join(runner.work_dir, PROMPT_FILE))

    def _file(self, runner: Runner) -> PromptFile:
        return PromptFile(
            tokens=self.bank.tokens(),
            **self.bank.options(),
            teacher=self.teacher,
            teacher_sha256=self.teacher_sha256,
            versions=versions(),
            schedule=plain(
                dict(
                    max_iters=self.max_iters,
                    optimizer=self.optimizer,
                    min_lr=self.min_lr,
                    weight=self.weight,
                    **self.prompt,
                )
            ),
        )
