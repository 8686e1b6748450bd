"""The API reference is made from docstrings: every public name has one, with the arguments of its signature."""

from __future__ import annotations

import importlib
import inspect
import re
from typing import Any

import pytest
from docs_pages import ROOT

from freekd_mm.registry import HOOKS, MODELS

PACKAGES = ('losses', 'prompts', 'connectors', 'frequency')
SECTION = r'^(?:Args|Attributes):\n((?:^    .*\n?|^\n)+)'


def public_names() -> list[tuple[str, str]]:
    """Returns (module, name) of all exported names, and of the models and hooks for a config."""
    modules = [importlib.import_module(f'freekd_mm.{package}') for package in PACKAGES]
    exported = [(module.__name__, name) for module in modules for name in module.__all__]
    registered = {**MODELS.modules, **HOOKS.modules}
    return [*exported, *((module, name) for name, module in registered.items() if 'benchmark' not in module)]


def documented(text: str) -> list[str]:
    """Returns the names in the sections Args and Attributes of a docstring, in order."""
    return [
        name
        for section in re.findall(SECTION, text, re.MULTILINE)
        for name in re.findall(r'^ {4}\*{0,2}(\w+)', section, re.M)
    ]


def parameters(thing: Any) -> list[str]:
    """Returns the names of a call's parameters."""
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    signature = inspect.signature(thing)
    return [name for name, parameter in signature.parameters.items() if parameter.kind not in kinds]


@pytest.mark.parametrize(('package', 'name'), public_names())
def test_docstring_matches_the_signature(package: str, name: str) -> None:
    thing = getattr(importlib.import_module(package), name)
    text = inspect.getdoc(thing) or ''
    own = thing.__doc__ if inspect.isclass(thing) else text
    assert own, f'{package}.{name} should have a docstring of its own'
    inherits = inspect.isclass(thing) and '__init__' not in vars(thing) and not hasattr(thing, '_fields')
    if inherits and not documented(text):
        return
    missing = [parameter for parameter in parameters(thing) if parameter not in documented(text)]
    assert not missing, f'{package}.{name} should describe {missing} under Args'
    section = re.search(r'^Args:\n((?:^    .*\n?|^\n)+)', text, re.MULTILINE)
    extra = set(re.findall(r'^ {4}\*{0,2}(\w+)', section[1], re.M) if section else []) - set(
        inspect.signature(thing).parameters
    )
    assert not extra, f'{package}.{name} describes {sorted(extra)}, which it does not take'


@pytest.mark.parametrize(('package', 'name'), public_names())
def test_public_methods_have_a_docstring(package: str, name: str) -> None:
    thing = getattr(importlib.import_module(package), name)
    if inspect.isclass(thing):
        bare = [
            key
            for key, value in vars(thing).items()
            if not key.startswith('_') and inspect.isfunction(value) and not inspect.getdoc(value)
        ]
        assert not bare, f'{package}.{name}: {bare} should have a docstring'


def test_no_formula_is_broken_over_two_lines() -> None:
    """The reference would show its source instead."""
    wrong = [
        f'{path.relative_to(ROOT)}:{number}'
        for path in (ROOT / 'freekd_mm').rglob('*.py')
        for number, line in enumerate(path.read_text(encoding='utf-8').splitlines(), 1)
        if re.search(r':math:`[^`]*$', line)
    ]
    assert not wrong, f':math:`...` should stand on one line: {wrong}'
