"""Stage 1 of FreeKD: a hook that turns a teacher's training config into the training of its frequency prompt."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.dist import all_reduce_params, is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch.nn.parallel import DistributedDataParallel

from freekd_mm.checks import check_options, check_positive
from freekd_mm.compat import install
from freekd_mm.engine.distributed import unwrapped_model
from freekd_mm.log import say, warn
from freekd_mm.pictures import mask_pictures
from freekd_mm.prompts.prompt import FrequencyPrompt
from freekd_mm.prompts.prompt_file import NAME, PROMPT_FILE, PromptFile, prompt_content, save_prompt
from freekd_mm.registry import HOOKS
from freekd_mm.runtime.encoder import FeatureEncoder
from freekd_mm.runtime.preprocess import as_rgb
from freekd_mm.stage1 import recipe
from freekd_mm.stage1.bank import PromptBank, find_channels
from freekd_mm.stage1.selectivity import describe, flat_bands, measure


@HOOKS.register_module()
class FrequencyPromptHook(Hook):
    """Trains a frequency prompt instead of the model: add it to a teacher's training config, and it becomes stage 1.

    Before training it loads the teacher and freezes it, norms and dropouts included. It adds one prompt after each
    output of the named modules, as a child of the model, ``frequency_prompt``, and lets the runner follow
    :func:`freekd_mm.stage1.recipe.stage1_recipe`. ``lambda * dissimilarity`` joins the losses as
    ``loss_prompt_dissimilarity``. Checkpoints hold the prompt, its optimizer and the teacher's name and hash, not the
    teacher; training resumes from them. At the end the prompt file, ``<work_dir>/frequency_prompt.pth``, and pictures
    of its masks are written.

    Args:
        modules: Modules whose outputs get prompts: a path, or a list. ``'neck'`` takes all its levels,
            ``'neck[1:3]'`` or ``'backbone[3]'`` some.
        weight: lambda, the factor on the dissimilarity; by default that of the prompt's mode.
        max_iters: Iterations. By default a fifth of those that the config trains for, from 100 to 2000.
        optimizer: Config of another optimizer than Adam with learning rate 0.01 and weight decay 1e-3.
        probe_size: Height and width of the dummy image that finds the channels; by default one that the teacher takes.
        allow_random_teacher: Train the prompt of an untrained teacher; only tests need this.
        **prompt: Options of :class:`freekd_mm.prompts.FrequencyPrompt`.
    """

    # Before every hook that uses the model, the loop or the optimizer.
    priority = 'VERY_HIGH'

    def __init__(
        self,
        modules: str | Sequence[str] = 'neck',
        weight: float | None = None,
        max_iters: int | None = None,
        optimizer: dict | None = None,
        probe_size: tuple[int, int] | None = None,
        allow_random_teacher: bool = False,
        **prompt: Any,
    ) -> None:
        install()
        if weight is not None:
            check_positive('weight', weight, zero=True)
        if max_iters is not None:
            check_positive('max_iters', max_iters, integer=True)
        own = [name for name in inspect.signature(FrequencyPromptHook).parameters if name != 'prompt']
        options = [name for name in inspect.signature(FrequencyPrompt).parameters if name != 'channels']
        check_options('FrequencyPromptHook', prompt, [*own, *options])
        PromptBank({'check': {0: 1}}, weight, **prompt)  # raises for a wrong value before anything is built
        self.modules = [modules] if isinstance(modules, str) else list(modules)
        self.max_iters, self.weight, self.prompt = max_iters, weight, prompt
        #: The last batches, on which the prompt is measured.
        self.batches: deque[Any] = deque(maxlen=4)
        self.optimizer = optimizer or recipe.OPTIMIZER
        self.probe_size, self.allow_random_teacher = probe_size, allow_random_teacher
        self.measured: dict[str, Any] = {}

    def before_run(self, runner: Runner) -> None:
        """Loads and freezes the teacher, adds the prompts, and lets the runner follow the recipe."""
        wrapped = is_model_wrapper(runner.model)
        if type(runner) is not Runner or (wrapped and not isinstance(runner.model, DistributedDataParallel)):
            raise TypeError(
                'FrequencyPromptHook should run with mmengine.runner.Runner, on one process or with '
                f'DistributedDataParallel, but got {type(runner).__name__} and {type(runner.model).__name__}'
            )
        model = unwrapped_model(runner)
        if hasattr(model, 'distillation') or isinstance(model, FeatureEncoder):
            raise TypeError(
                'FrequencyPromptHook should be in the training config of a teacher with losses of its own, but its '
                f'model is {type(model).__name__}. A distillation names it: {NAME} = dict(cfg_path=..., file=...)'
            )
        if hasattr(model, NAME):
            raise ValueError(f'the config should have one FrequencyPromptHook, but {type(model).__name__} has {NAME}')
        source, point = recipe.teacher_and_resume_point(runner)
        runner._load_from, runner._resume = point, point is not None
        self.teacher, self.teacher_sha256 = recipe.load_teacher(model, source, self.allow_random_teacher)
        self.bank = PromptBank(find_channels(model, self.modules, self.probe_size), self.weight, **self.prompt)
        self.bank.plug_into(model)
        if wrapped:
            # Once more, so that the buckets of DDP hold only the tokens.
            runner.model = runner.wrap_model(runner.cfg.get('model_wrapper_cfg'), model)
        training = runner.max_iters
        self.max_iters = self.max_iters or recipe.default_iters(training)
        settings = recipe.stage1_recipe(runner.cfg.get('optim_wrapper') or {}, self.optimizer, self.max_iters)
        recipe.follow(runner, settings, self.bank)
        places = ', '.join(f'{module}[{index}]' for module, index, _ in self.bank.places)
        count = sum(parameter.numel() for parameter in self.bank.parameters())
        say(
            f'frequency prompt: {count} parameters after {places} train for {self.max_iters} iterations (the config '
            f'trains for {training}); the teacher {type(model).__name__} is frozen'
        )

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Checks that the prompts were reached."""
        if outputs is not None and 'loss_prompt_dissimilarity' not in outputs:
            raise RuntimeError(
                f'modules: {", ".join(self.modules)} should run in the losses of the teacher, but did not; name '
                'modules that the forward pass in training calls'
            )
        self.batches.append(data_batch)

    def after_train(self, runner: Runner) -> None:
        """Measures the prompt and writes its file and the pictures of its masks."""
        model = unwrapped_model(runner)
        # What each process saw of the masks' statistics.
        all_reduce_params(list(self.bank.buffers()), op='mean')
        with runner.optim_wrapper.optim_context(model):
            # On every process: heads average over all of them.
            self.measured, masks = measure(model, self.bank, self.batches)
        if not is_main_process():
            return
        path = save_prompt(self._file(), Path(runner.work_dir) / PROMPT_FILE)
        say(f'the frequency prompt is in {path}. Its weight:\n{describe(self.measured)}')
        flat = flat_bands(self.measured)
        if flat:
            warn(
                f'frequency prompt: the weight is flat, its deviation below a tenth of its mean, in {", ".join(flat)}. '
                "There it will change nothing in the distillation; mode='selective' makes prompts that select"
            )
        if self.batches:
            preprocess: Any = model.data_preprocessor
            image = as_rgb(preprocess(self.batches[-1], True)['inputs'][0], preprocess)
            folder = path.with_suffix('')
            mask_pictures(image, {place: groups for place, groups in masks.items() if groups}, folder)
            say(f'pictures of the masks are in {folder}')

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Leaves the teacher out of the checkpoint, and puts its name and hash in."""
        state = checkpoint['state_dict']
        checkpoint['state_dict'] = {name: value for name, value in state.items() if name.startswith(f'{NAME}.')}
        checkpoint[NAME] = prompt_content(self._file())

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Fills the teacher's weights in, so that the runner does not report each of them as missing."""
        if NAME in checkpoint:
            checkpoint['state_dict'] = {**unwrapped_model(runner).state_dict(), **checkpoint['state_dict']}

    def _file(self) -> PromptFile:
        return PromptFile(
            **self.bank.content(), teacher=self.teacher, teacher_sha256=self.teacher_sha256, measured=self.measured
        )
