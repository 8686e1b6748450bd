"""Keeps distillation from changing the random numbers that the student sees, and gives it its own."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from mmengine.dist import get_rank


@contextmanager
def isolated_rng(seed: int | None = None) -> Iterator[None]:
    """Restores Python's, NumPy's and PyTorch's random states (CPU and current device) on exit.

    Without a seed the present states continue inside. A student that draws no random numbers has the same states at
    every step, so what is to differ from step to step needs a seed.
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        try:
            if seed is not None:
                random.seed(seed)
                np.random.seed(seed)
                torch.random.default_generator.manual_seed(seed)
                if devices:
                    torch.cuda.manual_seed(seed)
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)


def place_seed(*place: int) -> int:
    """Returns a seed (32 bits) for a place in a run."""
    return int(np.random.SeedSequence(place).generate_state(1)[0])


def step_seed(step: int) -> int:
    """Returns a seed for one step of this process, from the seed of the run."""
    return place_seed(torch.initial_seed(), get_rank(), step)
