"""The registries: their tables name what is there, and configs of mmdet and mmseg find it without custom_imports."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest
from mmengine.registry import HOOKS as ROOT_HOOKS
from mmengine.registry import MODELS as ROOT_MODELS
from test_rooms import modules

from freekd_mm import registry

NAMES = ('MODELS', 'HOOKS', 'TRANSFORMS', 'DATASETS', 'DATA_SAMPLERS')
REGISTRIES = {name: getattr(registry, name) for name in NAMES}


def decorated(name: str) -> dict[str, str]:
    """The names that the source registers in a registry, and their modules."""
    return {
        node.name: f'freekd_mm.{module}'
        for module, path in modules().items()
        for text in [path.read_text(encoding='utf-8')]
        for node in ast.walk(ast.parse(text))
        if isinstance(node, (ast.ClassDef, ast.FunctionDef))
        for decorator in node.decorator_list
        if ast.get_source_segment(text, decorator) == f'{name}.register_module()'
    }


@pytest.mark.parametrize('name', REGISTRIES)
def test_table_names_what_is_registered(name):
    assert REGISTRIES[name].modules == decorated(name)


def test_no_program_registers_a_name():
    """It would run as ``__main__``, and be imported again under its own name."""
    for ours in REGISTRIES.values():
        for module in set(ours.modules.values()):
            assert '__main__' not in modules()[module.partition('.')[2]].read_text(encoding='utf-8'), module


@pytest.mark.parametrize('name', REGISTRIES)
def test_every_name_is_found(name):
    ours = REGISTRIES[name]
    for held, module in ours.modules.items():
        assert ours.parent.get(f'freekd_mm.{held}').__module__ == module
        assert ours.get(held) is ours.get(f'freekd_mm.{held}')
        assert held in ours


def test_unknown_name():
    assert ROOT_MODELS.get('freekd_mm.FreKDLoss') is None
    assert 'FreKDLoss' not in registry.MODELS
    assert 'FreeKDLoss' in registry.MODELS.names


def test_names_of_a_user_are_found_as_well():
    @registry.HOOKS.register_module()
    class HookOfAUser:
        pass

    try:
        assert ROOT_HOOKS.get('freekd_mm.HookOfAUser') is HookOfAUser
        assert 'HookOfAUser' in registry.HOOKS.names
    finally:
        del registry.HOOKS.module_dict['HookOfAUser']


@pytest.mark.parametrize('package', ['mmdet', 'mmseg'])
def test_registries_of_other_packages_find_ours(package):
    """In a fresh process, where nothing of freekd_mm is imported yet."""
    pytest.importorskip(package)
    code = f"""
import sys
from {package}.registry import HOOKS, MODELS, TRANSFORMS
assert MODELS.build(dict(type='freekd_mm.FeatureMSELoss')).loss_weight == 1
assert not [name for name in sys.modules if name.startswith(('freekd_mm.runtime', 'freekd_mm.engine'))]
assert HOOKS.build(dict(type='freekd_mm.DistillScheduleHook', warmup=0.3)).warmup == 0.3
assert not [name for name in sys.modules if name.startswith(('freekd_mm.stage1', 'freekd_mm.visualize'))]
assert 'freekd_mm.Corrupt' in TRANSFORMS
"""
    answer = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
