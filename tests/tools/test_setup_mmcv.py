"""mmcv's wheel in the set-up program: its cache, its key, when it is built. Nothing is compiled here."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from setup_env import mmcv_source, mmcv_wheel, venv
from setup_env.errors import SetupError
from setup_fakes import FakeSteps, isolate

TARGET = mmcv_wheel.Target('mmcv', '2.1.0', '2.13.0', 'cpu', 'cp311', 'linux_x86_64', '/usr/include/python3.11')


@pytest.fixture(autouse=True)
def isolated(tmp_path, monkeypatch):
    """No test sees or fills the user's cache, or follows the user's settings."""
    isolate(tmp_path, monkeypatch)


def test_key_of_a_wheel_names_all_that_it_depends_on(tmp_path):
    assert TARGET.key == 'mmcv-2.1.0-torch-2.13.0-cpu-cp311-linux_x86_64'
    assert mmcv_wheel.wheel_cache() == tmp_path / 'cache' / 'freekd_mm' / 'wheels'


def test_cache(tmp_path):
    wheel = tmp_path / 'mmcv-2.1.0-cp311-cp311-linux_x86_64.whl'
    wheel.write_text('wheel')
    assert not mmcv_wheel.is_cached('mmcv', '2.1.0', '2.13.0', (3, 11))
    place = mmcv_wheel.keep(wheel, TARGET)
    assert place == mmcv_wheel.wheel_cache() / TARGET.key / wheel.name
    assert [path.name for path in place.parent.iterdir()] == [wheel.name]
    assert mmcv_wheel.is_cached('mmcv', '2.1.0', '2.13.0', (3, 11))
    assert mmcv_wheel.is_cached('mmcv', '2.1.0', '2.13.0+cpu', (3, 11))
    assert mmcv_wheel.is_cached('mmcv', '2.1.0', 'installed', (3, 11))
    assert not mmcv_wheel.is_cached('mmcv', '2.1.0', '2.13.0', (3, 12))
    assert not mmcv_wheel.is_cached('mmcv', '2.1.0', '2.12.0', (3, 11))
    assert not mmcv_wheel.is_cached('onedl-mmcv', '2.3.6', '2.13.0', (3, 11))


def test_cache_that_cannot_be_written_does_not_stop_the_set_up(tmp_path, capsys):
    (tmp_path / 'cache').write_text('a file in the place of the folder')
    wheel = tmp_path / 'x.whl'
    wheel.touch()
    assert mmcv_wheel.keep(wheel, TARGET) is None
    assert 'not kept' in capsys.readouterr().out


def describe_with(monkeypatch, **found):
    answer = {
        'torch': '2.13.0+cu130',
        'cuda': '13.0',
        'gpu': True,
        'nvcc': '/usr/local/cuda',
        'arch': ['90'],
        'python': 'cp311',
        'platform': 'linux_x86_64',
        'include': '/usr/include',
    }
    monkeypatch.setattr(mmcv_wheel, 'ask', lambda *_: {**answer, **found})
    return mmcv_wheel.describe(venv.Venv(Path('env')), 'mmcv', '2.1.0')


def test_wheels_for_gpus_are_kept_apart(monkeypatch):
    assert describe_with(monkeypatch).key == 'mmcv-2.1.0-torch-2.13.0-cu130-sm90-cp311-linux_x86_64'
    assert describe_with(monkeypatch, gpu=False, nvcc=None, arch=[]).device == 'cpu'
    monkeypatch.setenv('TORCH_CUDA_ARCH_LIST', '8.0;9.0')
    assert describe_with(monkeypatch).device == 'cu130-sm8.0_9.0'
    monkeypatch.setenv('MMCV_CUDA', '0')
    assert describe_with(monkeypatch).device == 'cpu'


def test_gpu_without_cuda_compiler(monkeypatch):
    with pytest.raises(SetupError, match=r'no CUDA compiler \(nvcc\).*CUDA 13\.0') as caught:
        describe_with(monkeypatch, nvcc=None)
    assert 'MMCV_CUDA=0' in caught.value.advice


def test_page_of_ready_wheels():
    assert mmcv_wheel.wheel_page(TARGET) is None
    old = replace(TARGET, torch='2.1.2', device='cu121-sm80')
    assert mmcv_wheel.wheel_page(old) == 'https://download.openmmlab.com/mmcv/dist/cu121/torch2.1.0/index.html'
    assert mmcv_wheel.wheel_page(replace(old, name='onedl-mmcv')) is None


def test_mmcv_from_the_cache(tmp_path, monkeypatch):
    place = mmcv_wheel.wheel_cache() / TARGET.key
    place.mkdir(parents=True)
    (place / 'mmcv.whl').touch()
    monkeypatch.setattr(mmcv_wheel, 'works', lambda *_: True)
    run = FakeSteps(tmp_path)
    mmcv_wheel.install_mmcv(run, venv.Venv(tmp_path / 'env'), TARGET)
    assert len(run.commands) == 1
    assert run.commands[0].endswith(str(place / 'mmcv.whl'))


def test_cached_wheel_that_does_not_work_is_built_anew_and_replaced(tmp_path, monkeypatch):
    place = mmcv_wheel.wheel_cache() / TARGET.key
    place.mkdir(parents=True)
    name = 'mmcv-2.1.0-cp311-cp311-linux_x86_64.whl'
    (place / name).write_text('broken')
    answers = iter([False, True])
    monkeypatch.setattr(mmcv_wheel, 'works', lambda *_: next(answers))
    monkeypatch.setattr(mmcv_wheel, 'check_headers', lambda _: None)
    monkeypatch.setattr(mmcv_wheel, 'find_compiler', lambda: 'c++')
    monkeypatch.setattr(mmcv_wheel, 'unpack', lambda *_, **__: tmp_path)
    run = FakeSteps(tmp_path, fails=('mmcv-ready',))
    environment = venv.Venv(tmp_path / 'env')
    mmcv_wheel.install_mmcv(run, environment, TARGET)
    assert (place / name).read_text() == 'built'
    assert not (environment.folder / 'build').exists()
    build = next(number for number, command in enumerate(run.commands) if ' wheel ' in command)
    for flag in ('--no-deps', '--no-build-isolation', '--no-cache-dir'):
        assert flag in run.commands[build]
    assert run.environments[build]['MMCV_WITH_OPS'] == '1'
    assert run.environments[build]['FORCE_CUDA'] == '0'
    assert int(run.environments[build]['MAX_JOBS']) >= 1
    assert run.environments[build]['CFLAGS'].endswith('-O2 -g0')


def test_built_wheel_that_does_not_work_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(mmcv_wheel, 'works', lambda *_: False)
    monkeypatch.setattr(mmcv_wheel, 'check_headers', lambda _: None)
    monkeypatch.setattr(mmcv_wheel, 'find_compiler', lambda: 'c++')
    monkeypatch.setattr(mmcv_wheel, 'unpack', lambda *_, **__: tmp_path)
    run = FakeSteps(tmp_path, fails=('mmcv-ready',))
    with pytest.raises(SetupError, match='was built, but its operators do not load'):
        mmcv_wheel.install_mmcv(run, venv.Venv(tmp_path / 'env'), TARGET)
    assert not mmcv_wheel.wheel_cache().exists()


def archive(folder: Path) -> None:
    """Writes a source archive with the files that are grouped."""
    names = ['a.cpp', 'b.cpp', 'cuda/cudabind.cpp', 'cuda/carafe_cuda.cu', *(f'cuda/{i}_cuda.cu' for i in range(6))]
    names += [f'cpu/{name}' for name in (*mmcv_source.CLASHING, 'psamask.cpp', 'nms.cpp', 'a.cpp')]
    for name in names:
        file = folder / 'mmcv-2.1.0' / mmcv_source.OPERATORS / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f'// {name}\n')
    (folder / 'mmcv-2.1.0' / 'setup.py').write_text("args = ['-std=c++17']")
    shutil.make_archive(str(folder / 'mmcv-2.1.0'), 'gztar', folder, 'mmcv-2.1.0')
    shutil.rmtree(folder / 'mmcv-2.1.0')


class DownloadingSteps(FakeSteps):
    """Downloads the archive."""

    def try_run(self, command, name, **options):
        if name == 'mmcv-source':
            Path(command[-1]).mkdir(parents=True)
            archive(Path(command[-1]))
            return '', 0
        return super().try_run(command, name, **options)


def test_source_in_groups(tmp_path):
    """Each file is compiled once, in a file that setup.py finds; those that clash are in different ones."""
    source = (
        mmcv_source.unpack(DownloadingSteps(tmp_path), ['pip'], tmp_path / 'build', '2.13.0') / mmcv_source.OPERATORS
    )
    found = {str(file.relative_to(source)): file.read_text() for file in source.rglob('*.cpp')}
    assert found.pop('grouped.cpp') == '#include "a.part"\n#include "b.part"\n'
    assert found.pop('cuda/cudabind.cpp')
    assert len(found) == len(mmcv_source.CLASHING)
    parts = [part for text in found.values() for part in re.findall(r'"(.+)"', text)]
    assert sorted(parts) == sorted(file.name for file in (source / 'cpu').glob('*.part'))
    assert len(parts) == 7
    for text in found.values():
        assert sum(f'"{Path(name).stem}.part"' in text for name in mmcv_source.CLASHING) == 1
    assert next(text for text in found.values() if 'psamask' in text).endswith('"psamask.part"\n')
    compiled = {file.name: re.findall(r'"(.+)"', file.read_text()) for file in (source / 'cuda').glob('*.cu')}
    assert compiled.pop('carafe_cuda.cu') == []
    assert len(compiled) == mmcv_source.CUDA_GROUPS
    assert sorted(part for parts in compiled.values() for part in parts) == [f'{i}_cuda.part' for i in range(6)]
    # A second call finds what the first one left: compiled files lie there.
    (source / 'kept').touch()
    mmcv_source.unpack(FakeSteps(tmp_path), ['pip'], tmp_path / 'build', '2.13.0')
    assert (source / 'kept').exists()


@pytest.mark.parametrize(('torch', 'standard'), [('1.13.1', 17), ('2.13.0', 17), ('2.14.1', 20), ('3.0.0', 20)])
def test_headers_of_the_newest_torch_are_cpp20(tmp_path, torch, standard):
    source = mmcv_source.unpack(DownloadingSteps(tmp_path), ['pip'], tmp_path / 'build', torch)
    assert (source / 'setup.py').read_text() == f"args = ['-std=c++{standard}']"


def test_groups_that_do_not_compile_are_compiled_file_by_file(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(mmcv_wheel, 'works', lambda *_: True)
    monkeypatch.setattr(mmcv_wheel, 'check_headers', lambda _: None)
    monkeypatch.setattr(mmcv_wheel, 'find_compiler', lambda: 'c++')
    run = DownloadingSteps(tmp_path, fails=('mmcv-ready', 'mmcv-build'))
    environment = venv.Venv(tmp_path / 'env')
    sources = []
    monkeypatch.setattr(mmcv_wheel, 'keep', lambda *_: sources.extend((environment.folder / 'build').rglob('a.*')))
    mmcv_wheel.install_mmcv(run, environment, TARGET)
    assert 'each is compiled alone' in capsys.readouterr().out
    grouped, apart = (command for command in run.commands if ' wheel ' in command)
    assert apart.split()[-1] != grouped.split()[-1]
    assert {file.suffix for file in sources if f'{TARGET.key}-apart' in str(file)} == {'.cpp'}
    assert {file.suffix for file in sources if f'{TARGET.key}-apart' not in str(file)} == {'.part'}
