"""Fixtures for all tests: one thread, a tiny data set in both layouts, and configs of tiny models on it."""

from __future__ import annotations

import gc
import importlib.util
import os
import re
import signal
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, Callable

# Before torch is imported: the machine runs several tests at once.
os.environ.setdefault('OMP_NUM_THREADS', '1')
# Before mmengine is imported, here and in the processes that tests start.
sys.path.insert(0, str(Path(__file__).with_name('quick')))
sys.path.append(str(Path(__file__).parents[1] / 'tools'))  # scenes/; what the tests have goes first
os.environ['PYTHONPATH'] = os.pathsep.join(filter(None, (sys.path[0], os.environ.get('PYTHONPATH'), sys.path[-1])))

import cv2
import mmengine.config.utils
import pytest
import tiny_configs
import torch
from leftovers import clear_leftovers
from scenes import write_scenes

from freekd_mm.compat import install
from freekd_mm.compat.versions import cache

install()
torch.set_num_threads(1)
cv2.setNumThreads(0)

ConfigWriter = Callable[..., Path]

#: Seconds; the slowest tests take a tenth of it on two busy cores.
TIME_LIMIT = 600


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips tests of wavelets other than Haar where ptwt is not installed."""
    if importlib.util.find_spec('ptwt'):
        return
    for item in items:
        params = item.callspec.params if hasattr(item, 'callspec') else {}
        options = [params, *(value for value in params.values() if isinstance(value, dict))]
        if any(each.get('wavelet', 'haar') not in ('haar', 'db1') for each in options):
            item.add_marker(pytest.mark.skip(reason='ptwt is not installed: it has no release for this Python'))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, Any, Any]:
    """Skips a test whose fixture has a part of mmrazor where that is not installed."""
    return (yield from _without_mmrazor())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Skips a test whose model has a part of mmrazor where that is not installed."""
    return (yield from _without_mmrazor())


def _without_mmrazor() -> Generator[None, Any, Any]:
    try:
        return (yield)
    except Exception as error:
        named = re.search(r"got 'mmrazor\.\w+'|mmrazor\.\w+ is not in", str(error))
        if named and not importlib.util.find_spec('mmrazor'):
            pytest.skip('mmrazor is not installed, and the model has a part of it')
        raise


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    """A test that waits for something that never comes fails with the place where it waits."""

    def stop(number: int, frame: Any) -> None:
        raise TimeoutError(f'{item.nodeid} should end within {TIME_LIMIT} s, but waits here')

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(TIME_LIMIT)
    try:
        return (yield)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope='session', autouse=True)
def _quick_configs() -> Iterator[None]:
    """mmengine reads all metafiles of mmdet for each ``mmdet::...``, which takes longer than a short run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mmengine.config.utils, 'load', cache(mmengine.config.utils.load))
        yield


@pytest.fixture(autouse=True)
def _quick_collections() -> None:
    """Takes what was imported out of the sight of the garbage collector: mmengine calls it for each data set."""
    if len(sys.modules) > 1.1 * _imported[0]:
        _imported[0] = len(sys.modules)
        gc.freeze()


_imported = [0]


@pytest.fixture(autouse=True)
def _no_leftovers() -> Iterator[None]:
    """The next test begins without the default scope and the visualizers of a runner, or a tool's answer to SIGTERM."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)
    clear_leftovers()


@pytest.fixture(scope='session')
def scenes_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight training and four validation pictures of 64 x 64, as COCO and as Cityscapes. Read only."""
    return write_scenes(tmp_path_factory.mktemp('scenes') / 'root', num_train=8, num_val=4, size=64, seed=0)


@pytest.fixture(scope='session')
def coco_root(scenes_root: Path) -> Path:
    """Root of ``annotations/``, ``train2017/`` and ``val2017/``."""
    return scenes_root


@pytest.fixture(scope='session')
def cityscapes_root(scenes_root: Path) -> Path:
    """Root of ``leftImg8bit/`` and ``gtFine/``."""
    return scenes_root


@pytest.fixture
def det_config(tmp_path: Path, coco_root: Path) -> ConfigWriter:
    """Writes a tiny detector's config file: ``det_config(name='teacher', head='gfl', width=16, ...)``.

    The options are those of ``tiny_configs.detector``. The config trains for two iterations and evaluates once.
    """

    def make(name: str = 'detector', **options: Any) -> Path:
        return tiny_configs.write(tmp_path / f'{name}.py', tiny_configs.detector(coco_root, **options))

    return make


@pytest.fixture
def seg_config(tmp_path: Path, cityscapes_root: Path) -> ConfigWriter:
    """Writes a tiny segmenter's config file: ``seg_config(name='teacher', width=16, ...)``.

    The options are those of ``tiny_configs.segmenter``. The config trains for two iterations and evaluates once.
    """

    def make(name: str = 'segmenter', **options: Any) -> Path:
        return tiny_configs.write(tmp_path / f'{name}.py', tiny_configs.segmenter(cityscapes_root, **options))

    return make
