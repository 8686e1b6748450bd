"""Configs of packages: where the names of their types are looked up."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from freekd_mm.runtime.config import find_model, load_config


def test_a_package_config_without_a_runtime_names_its_types_in_its_package() -> None:
    assert load_config('mmdet::_base_/models/retinanet_r50_fpn.py').default_scope == 'mmdet'
    assert load_config('mmseg::_base_/models/pspnet_r50-d8.py').default_scope == 'mmseg'


def test_the_scope_that_a_config_names_stays() -> None:
    assert load_config('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py').default_scope == 'mmdet'


@pytest.mark.parametrize('module', ['my_heads', 'my_heads.anchors'])
def test_a_module_of_the_user_is_not_at_a_package_index(module: str, tmp_path: Path) -> None:
    config = tmp_path / 'own.py'
    config.write_text(f'custom_imports = dict(imports=[{module!r}])\n')
    with pytest.raises(ImportError, match=r'needs the package my_heads, .*: if it is your own, put .* into PYTHONPATH'):
        load_config(str(config))


@pytest.mark.skipif(importlib.util.find_spec('mmpretrain') is not None, reason='mmpretrain is installed')
def test_the_package_that_a_config_of_a_package_needs_is_named() -> None:
    # mmdet 3.0 still takes it from mmcls.
    with pytest.raises(ImportError, match=r"^'mmdet::tim.*py' needs the package (mm\w+), .*: pip install \1$"):
        load_config('mmdet::timm_example/retinanet_timm-tv-resnet50_fpn_1x_coco.py')


def test_a_preprocessor_of_the_distilled_model_is_the_students() -> None:
    """The training gives it to the student, so a test or an export has to as well."""
    architecture, outer, top = {'type': 'GFL'}, {'type': 'A'}, {'type': 'B'}
    distilled = {'type': 'freekd_mm.DistilledModel', 'architecture': architecture, 'data_preprocessor': outer}
    assert find_model({'model': distilled, 'data_preprocessor': top})[0].data_preprocessor == outer
    architecture['data_preprocessor'] = {'type': 'C'}
    assert find_model({'model': distilled, 'data_preprocessor': top})[0].data_preprocessor == {'type': 'C'}
