"""Random numbers that depend only on the place in a run, not on what happened before."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_rank
from torch.utils.data import DataLoader, IterableDataset

from freekd_mm.runtime.rng import isolated_rng, place_seed

#: Keeps the seeds of the data apart from those of the steps and the evaluations.
DATA = 2


def seed_all(seed: int) -> None:
    """Seeds Python, NumPy and PyTorch on all devices."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


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
    try:
        dataset.__getitems__ = partial(_load, dataset, getattr(dataset, '__getitems__', None))
    except AttributeError:
        return False
    loader.__class__ = ExactLoader
    loader.seeded = SeededBatches(loader.batch_sampler, seed)
    # Otherwise each pass takes a number from the stream of the training.
    loader.generator = torch.Generator()
    return True


def _load(dataset: Any, together: Any, batch: list) -> list:
    """Loads the samples of a batch, each with its own seed."""
    if not isinstance(batch, SeededBatch):
        return together(batch) if together is not None else [dataset[index] for index in batch]
    if together is not None:
        with isolated_rng(batch.seed):
            return together(batch)
    samples = []
    for position, index in enumerate(batch):
        with isolated_rng(place_seed(batch.seed, position)):
            samples.append(dataset[index])
    return samples


class AdvancedIterator:
    """The batches of an iteration-based loop that resumes: its walk of some steps to its place loads no data."""

    def __init__(self, batches: Iterator, steps: int) -> None:
        self.batches, self.steps = batches, steps

    def __iter__(self) -> AdvancedIterator:
        return self

    def skip_iter(self, num_iters: int) -> None:
        """What the forks' loop calls in place of its walk: the loader is there already."""

    def __next__(self) -> Any:
        if self.steps:
            self.steps -= 1
            return None
        return next(self.batches)
