"""Which losses pull in the same direction: the cosines themselves, and the tool on a detector's config."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import tiny_configs
import torch
from distill_cases import make_config, save_weights
from tool_runs import run_tool
from torch import nn

from tools.directions import cosines, share_connectors


class Shared(nn.Module):
    """Weights that all losses reach, some that one does not, and those of a distillation."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = (nn.Parameter(torch.zeros(2)) for _ in range(2))
        self.distillation = nn.Linear(2, 1)


def test_cosines_are_those_of_the_weights_that_both_reach() -> None:
    model = Shared()
    first = 3 * model.backbone[0] + model.distillation(model.backbone).sum() * 0
    losses = {'a': first, 'b': model.backbone.sum() + 5 * model.head[0], 'c': -first, 'd': model.head.sum()}
    half, none = 0.5**0.5, float('nan')
    expected = torch.tensor(
        [[1, half, -1, none], [half, 1, -half, half], [-1, -half, 1, none], [none, half, none, 1]],
    )
    torch.testing.assert_close(cosines(losses, model), expected, equal_nan=True)


def test_connectors_of_one_form_start_alike() -> None:
    entries = [nn.Module() for _ in range(4)]
    for entry, connector in zip(entries, (nn.Conv2d(2, 3, 1), nn.Conv2d(2, 3, 1), nn.Conv2d(4, 3, 1), None)):
        entry.connector = connector
    other = entries[2].connector.weight.clone()
    share_connectors(entries)
    assert torch.equal(entries[0].connector.weight, entries[1].connector.weight)
    assert torch.equal(entries[2].connector.weight, other)


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='the tools run as forks of this process')
def test_the_tool_prints_a_table(tmp_path: Path, scenes_root: Path) -> None:
    student = tiny_configs.write(tmp_path / 'student.py', tiny_configs.detector(scenes_root, 'gfl'))
    wide = tiny_configs.detector(scenes_root, 'gfl', width=16, channels=24)
    teacher, weights = tiny_configs.write(tmp_path / 'teacher.py', wide), tmp_path / 'teacher.pth'
    save_weights(wide['model'], weights)
    make_config(str(student), str(teacher), str(weights), 'wavelet+mse+kl', tmp_path / 'kd.py')
    status, said = run_tool(tmp_path, 'directions.py', 'kd.py', '--batches', 2)
    assert status == 0, said
    first, header, *rows = said.strip().splitlines()[-6:]
    assert 'mean over 2 batches' in first
    names = ['wavelet', 'mse', 'kl', '(task)']
    assert header.split() == names
    values = {row.split()[0]: dict(zip(names, map(float, row.split()[1:]))) for row in rows}
    assert list(values) == names
    for name in names:
        assert values[name][name] == 1
        assert all(values[name][other] == values[other][name] for other in names)
    assert values['wavelet']['mse'] > values['kl']['mse'], 'both compare the same features'


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='the tools run as forks of this process')
@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['student.py'], 'config should be a distillation config'),
        (['none.py'], "config should be an existing file, but got 'none.py'"),
        (['student.py', 'none.pth'], "a checkpoint should be an existing file, but got 'none.pth'"),
        (['student.py', '--batches', 0], '--batches should be greater than 0, but got 0'),
    ],
)
def test_wrong_input_is_named(words: list, message: str, tmp_path: Path, scenes_root: Path) -> None:
    tiny_configs.write(tmp_path / 'student.py', tiny_configs.detector(scenes_root))
    status, said = run_tool(tmp_path, 'directions.py', *words)
    assert (status, 'Traceback' in said) == (2, False), said
    assert message in said


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='the tools run as forks of this process')
def test_unlabelled_pictures_are_left_out(tmp_path: Path, scenes_root: Path) -> None:
    """There the task says nothing."""
    student = tiny_configs.write(tmp_path / 'student.py', tiny_configs.detector(scenes_root, 'gfl'))
    save_weights(tiny_configs.detector(scenes_root, 'gfl')['model'], tmp_path / 'teacher.pth')
    given = [str(student), str(student), str(tmp_path / 'teacher.pth'), 'wavelet', tmp_path / 'kd.py']
    make_config(*given, unlabelled=scenes_root / 'val2017')
    status, said = run_tool(tmp_path, 'directions.py', 'kd.py', '--batches', 2)
    assert status == 0, said
    assert said.strip().splitlines()[-1].split()[-1] == '1.00'
