"""The oldest PyTorch stays the oldest: what the code takes from torch is listed with the version that brought it.

Read from the source, so that it needs no old PyTorch; where the oldest is installed, the list itself is checked.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from freekd_mm.compat.versions import OLDEST_TORCH, cache, installed_torch

ROOT = Path(__file__).parents[1]
#: A version, a name, keyword arguments. A name that begins with a dot is a method or an attribute, with '-' in front
#: where it is one of something else (Path.rename is, as Tensor.rename was).
LIST = Path(__file__).with_suffix('.txt')
MISSING = object()
OWNERS = (torch.Tensor, torch.nn.Module, torch.optim.Optimizer)
#: The one place for what is newer, and the kernels, which are imported on PyTorch 2.4 and newer alone.
NEWER_ALLOWED = tuple(ROOT / 'freekd_mm' / name for name in ('compat/versions.py', 'losses/bands/kernels.py'))


def listed() -> dict[str, tuple[int, int]]:
    """Versions by name, and by ``'name keyword'``."""
    found = {}
    for line in LIST.read_text(encoding='utf-8').splitlines():
        version, name, *keywords = line.split()
        major, minor = version.split('.') if version != '-' else (0, 0)
        for item in (name, *(f'{name} {keyword}' for keyword in keywords)):
            found[item] = (int(major), int(minor))
    return found


def lookup(name: str) -> Any:
    """What a name stands for in this PyTorch; ``MISSING`` where it has none."""
    if name.startswith('.'):
        return next((getattr(owner, name[1:]) for owner in OWNERS if hasattr(owner, name[1:])), MISSING)
    found: Any = torch
    for number, part in enumerate(name.split('.')[1:], 2):
        with contextlib.suppress(ImportError):
            importlib.import_module('.'.join(name.split('.')[:number]))
        found = getattr(found, part, MISSING)
    return found


@cache
def stubs() -> str:
    """The signatures of what is written in C."""
    folder = Path(torch.__file__).parent / '_C'
    return '\n'.join(path.read_text(encoding='utf-8') for path in sorted(folder.glob('*.pyi')))


@cache
def takes(name: str, keyword: str) -> bool:
    """Whether a function of this PyTorch has a keyword argument."""
    function = lookup(name)
    # The signature of a generic class is that of its __new__ on Python 3.8.
    target = function.__init__ if inspect.isclass(function) and '__init__' in vars(function) else function
    try:
        return keyword in inspect.signature(target).parameters
    except (TypeError, ValueError):
        found = re.findall(rf'def {name.split(".")[-1]}\(.*?\) ->', stubs(), re.S)
        return any(re.search(rf'\b{keyword}\b', text) for text in [*found, function.__doc__ or ''])


def uses(tree: ast.Module) -> Iterator[str]:
    """Names and ``'name keyword'`` that a file takes from torch."""
    imported: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported.update({item.asname or item.name.split('.')[0]: item.name for item in node.names if item.asname})
            imported.update({item.name.split('.')[0]: item.name.split('.')[0] for item in node.names})
        elif isinstance(node, ast.ImportFrom) and node.module:
            imported.update({item.asname or item.name: f'{node.module}.{item.name}' for item in node.names})

    def name_of(node: ast.expr) -> str | None:
        parts: list[str] = []
        while isinstance(node, ast.Attribute):
            parts.insert(0, node.attr)
            node = node.value
        if isinstance(node, ast.Name) and node.id in imported:
            full = '.'.join([imported[node.id], *parts])
            return full if full.split('.')[0] == 'torch' else None
        last = parts[-1] if parts else ''
        return f'.{last}' if not last.startswith('__') and any(hasattr(owner, last) for owner in OWNERS) else None

    yield from (full for full in imported.values() if full.split('.')[0] == 'torch')
    for node in ast.walk(tree):
        if isinstance(node, (ast.Attribute, ast.Name)):
            yield from filter(None, [name_of(node)])
        elif isinstance(node, ast.Call):
            name = name_of(node.func)
            yield from (
                f'{name} {item.arg}'
                for item in node.keywords
                if name and item.arg and (not name.startswith('.') or takes(name, item.arg))
            )


@pytest.mark.parametrize('folder', ['freekd_mm', 'tools', 'configs'])
def test_only_names_that_the_oldest_torch_has(folder):
    known, wrong = listed(), []
    for path in sorted((ROOT / folder).rglob('*.py')):
        newest = (99, 0) if path in NEWER_ALLOWED else OLDEST_TORCH
        for use in sorted(set(uses(ast.parse(path.read_text(encoding='utf-8'))))):
            if use.split('.')[-1].startswith('__'):
                continue
            if use not in known:
                wrong.append(f'{path.relative_to(ROOT)}: {use}: write it into {LIST.name} with its PyTorch version')
            elif known[use] > newest:
                wrong.append(f'{path.relative_to(ROOT)}: {use} is newer than PyTorch 1.13: use compat/versions.py')
    assert not wrong, '\n'.join(wrong)


def subscripted(tree: ast.Module) -> Iterator[str]:
    """Types that a file subscripts when it runs, which Python 3.8 knows of those of typing alone."""
    types = {'dict', 'frozenset', 'list', 'set', 'tuple', 'type'}
    annotations: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == 'collections.abc':
            types |= {item.asname or item.name for item in node.names}
        for field in ('annotation', 'returns'):
            if isinstance(getattr(node, field, None), ast.AST):
                annotations |= set(ast.walk(getattr(node, field)))
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and node not in annotations and isinstance(node.value, ast.Name):
            yield from {node.value.id} & types


@pytest.mark.parametrize('folder', ['freekd_mm', 'tools', 'configs', 'speed', 'tests'])
def test_only_types_of_typing_are_subscripted(folder):
    """vermin looks for these in annotations alone."""
    found = {path: sorted(subscripted(ast.parse(path.read_text()))) for path in sorted((ROOT / folder).rglob('*.py'))}
    assert not {path: names for path, names in found.items() if names}


def test_a_subscripted_type_would_be_seen():
    code = 'from collections.abc import Callable\nx: list[int] = []\nA = Callable[[int], int]\nB = dict[str, int]'
    assert sorted(subscripted(ast.parse(code))) == ['Callable', 'dict']


def test_a_newer_name_or_keyword_would_be_seen():
    tree = ast.parse(
        'import torch.nn.functional as F\nfrom torch import nn\n'
        'F.scaled_dot_product_attention(q, k, v)\nmodel.register_forward_hook(hook, with_kwargs=True)\n'
        'nn.Module.compile\nlist(x).sort(key=len)\ntorch = 1\n'
    )
    found = set(uses(tree))
    assert {
        'torch.nn.functional.scaled_dot_product_attention',
        '.register_forward_hook',
        'torch.nn.Module.compile',
    } <= found
    assert ('.register_forward_hook with_kwargs' in found) is (installed_torch() > OLDEST_TORCH)
    assert '.sort key' not in found


@pytest.mark.skipif(installed_torch() != OLDEST_TORCH, reason='the list is compared with PyTorch 1.13 where that is')
def test_oldest_torch_has_what_is_listed_for_it():
    for use, version in listed().items():
        name, *keyword = use.split()
        there = lookup(name) is not MISSING and all(takes(name, item) for item in keyword)
        assert there is (version <= OLDEST_TORCH) or version == (0, 0), use
