"""Configs of packages: where the names of their types are looked up."""

from __future__ import annotations

from freekd_mm.runtime.config import load_config


def test_a_package_config_without_a_runtime_names_its_types_in_its_package() -> None:
    assert load_config('mmdet::_base_/models/retinanet_r50_fpn.py').default_scope == 'mmdet'
    assert load_config('mmseg::_base_/models/pspnet_r50-d8.py').default_scope == 'mmseg'


def test_the_scope_that_a_config_names_stays() -> None:
    assert load_config('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py').default_scope == 'mmdet'
