"""Resumes with the same end as a run without a stop.

mmengine saves neither the random states nor the place in an epoch, and workers that stay alive from epoch to epoch
have states that nobody can read. So no states are saved. Every source of random numbers gets a seed that
follows from the run's seed and the place in the run: the training step from its iteration, and each sample that is
loaded from the number of its batch. A resume then has the right numbers wherever it starts, with any number of
workers, and skips the batches before it without loading them.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from mmengine.dist import get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapperDict
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner, set_random_seed
from torch.utils.data import DataLoader, IterableDataset

from freekd_mm.compat import install
from freekd_mm.compat.versions import resumed_loop_walks
from freekd_mm.engine.checkpoint_hook import ResumePoint
from freekd_mm.engine.distributed import build_training_data, unwrapped_model
from freekd_mm.log import say, warn
from freekd_mm.registry import HOOKS
from freekd_mm.runtime.rng import isolated_rng, place_seed

#: What is seeded.
STEP, EVALUATION, DATA, EPOCH = 0, 1, 2, 3
#: Key of gradients that wait for more, beside the state dict.
GRADIENTS = 'accumulated_gradients'


@HOOKS.register_module()
class ExactResumeHook(Hook):
    """Seeds every step by its place, stores the place in checkpoints, and continues there.

    Call :meth:`prepare` before the runner trains; ``tools/train.py`` does it for every config.
    """

    # First, so that what other hooks draw follows from the seed.
    priority = 'VERY_HIGH'

    def __init__(self) -> None:
        install()
        #: Batches of this epoch that are done.
        self.batches = 0
        self.evaluated = False
        self.point: ResumePoint | None = None
        self._offset = 0

    def prepare(self, runner: Runner) -> None:
        """Builds the training data loader of a runner that has not trained yet, seeded by place."""
        build_training_data(runner)
        if not make_exact(runner._train_dataloader, int(runner.seed or 0)):
            warn(
                'the training data loader has no batch sampler, or streams its data: after a resume the order of the '
                'data and their augmentations will not be those of an uninterrupted run'
            )
        cached = sorted(set(re.findall(r'\bCached\w+', str(runner.cfg.get('train_dataloader')))))
        if cached:
            warn(f'resumes are not exact with {", ".join(cached)}: pictures of earlier batches are not saved')
        runner.register_hook(PendingEvaluationHook(self), priority='LOWEST')

    @staticmethod
    def _seed_all(runner: Runner, kind: int) -> None:
        set_random_seed(place_seed(int(runner.seed or 0), kind, runner.iter))

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Reads the place that a resume starts at, and gradients that wait for more."""
        if runner._resume:
            self.point = ResumePoint.of(checkpoint)
            gradients = checkpoint.get(GRADIENTS, {})
            for name, parameter in unwrapped_model(runner).named_parameters():
                if name in gradients:
                    parameter.grad = gradients[name].to(parameter)

    def before_train(self, runner: Runner) -> None:
        """Goes to where the checkpoint was written."""
        loop, point, seeded = runner.train_loop, self.point, getattr(runner.train_dataloader, 'seeded', None)
        if point is None or seeded is None:
            return
        if isinstance(loop, IterBasedTrainLoop):
            seeded.skip = point.iteration
            # The loop's own walk to its place loads no data: the loader is there already.
            if hasattr(loop.dataloader_iterator, 'skip_iter'):  # the forks' loop asks its iterator to walk
                loop.dataloader_iterator.skip_iter = lambda count: None
            elif resumed_loop_walks():
                steps = itertools.repeat(None, point.iteration)
                loop.dataloader_iterator = itertools.chain(steps, loop.dataloader_iterator)
        elif isinstance(loop, EpochBasedTrainLoop) and point.batches:
            seeded.skip = self._offset = self.batches = point.batches
            run_iter = loop.run_iter
            loop.run_iter = lambda idx, data_batch: run_iter(idx + self._offset, data_batch)

    def before_train_epoch(self, runner: Runner) -> None:
        """Gives the number of the epoch to the pass through the data."""
        seeded = getattr(runner.train_dataloader, 'seeded', None)
        if seeded is not None and isinstance(runner.train_loop, EpochBasedTrainLoop):
            seeded.number = runner.epoch
        self._seed_all(runner, EPOCH)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Seeds the step."""
        self.evaluated = False
        self._seed_all(runner, STEP)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Counts the batches of this epoch."""
        self.batches = batch_idx + 1

    def after_train_epoch(self, runner: Runner) -> None:
        """An epoch is done."""
        self.batches = self._offset = 0

    def before_val_epoch(self, runner: Runner) -> None:
        """Seeds the evaluation."""
        self._seed_all(runner, EVALUATION)

    def after_val_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        """Checkpoints from here on know of the evaluation."""
        self.evaluated = True

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Notes the place."""
        place = {'batches': self.batches, 'evaluated': self.evaluated, 'processes': get_world_size()}
        checkpoint['meta']['freekd_mm'] = place
        if 'optimizer' in checkpoint and not gradients_are_used(runner):
            # Several processes have one each, until they add them up in the step.
            checkpoint[GRADIENTS] = {
                name: parameter.grad.cpu()
                for name, parameter in unwrapped_model(runner).named_parameters()
                if parameter.grad is not None
            }


def gradients_are_used(runner: Runner) -> bool:
    """Whether no gradients are waiting for more, as they do within ``accumulative_counts`` steps."""
    wrapper: Any = runner.optim_wrapper
    parts = wrapper.values() if isinstance(wrapper, OptimWrapperDict) else [wrapper]
    return all(part.should_update() for part in parts)


class PendingEvaluationHook(Hook):
    """Runs the evaluation that should have followed the checkpoint, when everything else is ready to train.

    Best checkpoints, schedules that follow a metric, and the last result of a run depend on it.
    """

    def __init__(self, place: ExactResumeHook) -> None:
        self.place = place

    def before_train(self, runner: Runner) -> None:
        """Evaluates, if it is due and was not done."""
        loop: Any = runner.train_loop
        point = self.place.point
        if point is None or point.evaluated or runner.val_loop is None:
            return
        if isinstance(loop, EpochBasedTrainLoop):
            done, last = (0 if point.batches else loop.epoch), loop.max_epochs
        elif isinstance(loop, IterBasedTrainLoop):
            done, last = loop.iter, loop.max_iters
        else:
            return
        loop._decide_current_val_interval()
        if done > 0 and done >= loop.val_begin and (done % loop.val_interval == 0 or done == last):
            say('the checkpoint was written before its evaluation, which runs first')
            runner.val_loop.run()


class SeededBatch(list):
    """The indices of one batch, and the seed that its samples are loaded with."""

    seed: int = 0


class SeededBatches:
    """Gives each batch of a batch sampler its seed, and starts in the middle for a resume."""

    def __init__(self, batches: Any, seed: int) -> None:
        self.batches, self.seed = batches, seed
        #: Number of the next pass through the data.
        self.number = 0
        #: Batches to skip before the next one.
        self.skip = 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[SeededBatch]:
        # Count only when a batch is taken: PyTorch makes one iterator more than it uses.
        while True:
            sampler: Any = getattr(self.batches, 'sampler', None)
            if hasattr(sampler, 'set_epoch'):
                sampler.set_epoch(self.number)
            number, self.number, is_empty = self.number, self.number + 1, True
            for index, indices in enumerate(self.batches):
                is_empty = False
                if self.skip:
                    self.skip -= 1
                    continue
                batch = SeededBatch(indices)
                batch.seed = place_seed(self.seed, DATA, get_rank(), number, index)
                yield batch
            if not self.skip:
                return
            if is_empty:
                raise RuntimeError('the training data loader should have batches to resume at, but has none')


class ExactLoader(DataLoader):
    """A data loader whose samples depend only on their place in the run.

    Made from a built one by :func:`make_exact`, so that sampler, workers and collation are the config's.
    """

    seeded: SeededBatches

    @property
    def _index_sampler(self) -> Any:
        return self.seeded

    def __iter__(self) -> Any:
        # A generator starts no worker before the first batch is wanted: by then it is known where to start.
        yield from super().__iter__()


def make_exact(loader: DataLoader, seed: int) -> bool:
    """Turns a data loader into an :class:`ExactLoader`, in place; returns whether that was possible."""
    if type(loader) is not DataLoader or loader.batch_sampler is None or isinstance(loader.dataset, IterableDataset):
        return False
    dataset: Any = loader.dataset
    dataset.__getitems__ = partial(_load, dataset)
    loader.__class__ = ExactLoader
    loader.seeded = SeededBatches(loader.batch_sampler, seed)
    # Otherwise each pass takes a number from the stream of the training.
    loader.generator = torch.Generator()
    return True


def _load(dataset: Any, batch: list) -> list:
    """Loads the samples of a batch, each with its own seed."""
    if not isinstance(batch, SeededBatch):
        return [dataset[index] for index in batch]
    samples = []
    for position, index in enumerate(batch):
        with isolated_rng(place_seed(batch.seed, position)):
            samples.append(dataset[index])
    return samples
