"""Distillation leaves the student's random numbers alone and has its own."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from freekd_mm.compat.versions import zip_equal
from freekd_mm.runtime import rng
from freekd_mm.runtime.rng import isolated_rng, step_seed


def draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@pytest.mark.parametrize('seed', [None, 5])
def test_states_are_restored(seed):
    seed_all(0)
    expected = draw()
    seed_all(0)
    with isolated_rng(seed):
        draw()
        random.shuffle([1, 2, 3])
    assert draw() == expected
    assert torch.initial_seed() == 0


def test_states_are_restored_after_an_error():
    seed_all(0)
    expected = draw()
    seed_all(0)
    with pytest.raises(RuntimeError), isolated_rng(3):
        torch.normal(torch.rand(2), torch.rand(3))  # draws, then fails
    assert draw() == expected


def test_seed_decides_what_is_drawn_inside():
    def inside(seed):
        with isolated_rng(seed):
            return draw()

    seed_all(0)
    first = inside(7)
    draw()
    assert inside(7) == first
    assert all(a != b for a, b in zip_equal(inside(8), first))


def test_step_seed_differs_from_step_to_step_and_from_run_to_run():
    torch.manual_seed(0)
    seeds = [step_seed(step) for step in range(100)]
    assert seeds == [step_seed(step) for step in range(100)]
    torch.rand(10)  # only the run's seed counts, not how far its stream is
    assert step_seed(3) == seeds[3]
    torch.manual_seed(1)
    assert len(set(seeds + [step_seed(step) for step in range(100)])) == 200


def test_step_seed_differs_from_process_to_process(monkeypatch):
    torch.manual_seed(0)
    seeds = []
    for rank in (0, 1):
        monkeypatch.setattr(rng, 'get_rank', lambda rank=rank: rank)
        seeds += [step_seed(step) for step in range(50)]
    assert len(set(seeds)) == 100
