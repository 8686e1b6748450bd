"""What an installation of freekd_mm brings, and what it imports."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from scenes import write_scenes

from freekd_mm.doctor.pins import MM_DISTRIBUTIONS, MM_MODULES, normalize, read_pins
from freekd_mm.version import __version__

ROOT = Path(__file__).resolve().parents[1]
BLOCKER = """
import sys
from importlib.abc import MetaPathFinder

class Blocker(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {blocked!r}:
            raise ModuleNotFoundError(f'{{name}} is blocked by the test')

sys.meta_path.insert(0, Blocker())
{code}
assert not {blocked!r} & {{name.split('.')[0] for name in sys.modules}}
"""


def run_python(code: str, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=cwd, check=False)


@pytest.fixture(scope='module')
def wheel(tmp_path_factory) -> Path:
    """A wheel built from a copy of the repository, without network."""
    copy = tmp_path_factory.mktemp('wheel') / 'copy'
    copy.mkdir()
    for name in ('setup.py', 'pyproject.toml', 'MANIFEST.in', 'README.md', 'LICENSE', 'model-index.yml'):
        shutil.copy(ROOT / name, copy)
    for name in ('freekd_mm', 'configs', 'tools', 'requirements'):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns('.mim', '__pycache__'))
    code = "from setuptools.build_meta import build_wheel; build_wheel('dist')"
    answer = run_python(code, copy)
    assert answer.returncode == 0, answer.stderr
    return next((copy / 'dist').glob('*.whl'))


def run_there(python: Path, *command: str | Path) -> str:
    """Runs a command of an environment, which alone is on the path; returns its output."""
    environment = {key: value for key, value in os.environ.items() if key != 'PYTHONPATH'}
    environment['PATH'] = os.pathsep.join([str(python.parent), os.environ['PATH']])
    command = [str(part) for part in (python, *command)]
    cwd = python.parents[2]
    answer = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=cwd, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout


@pytest.fixture(scope='module')
def foreign(tmp_path_factory) -> Path:
    """The Python of an environment that holds all that is installed here, but not freekd_mm."""
    folder = tmp_path_factory.mktemp('foreign') / 'venv'
    venv.create(folder, symlinks=True)
    (site,) = folder.glob('lib/python3*/site-packages')
    for place in filter(Path.is_dir, map(Path, sys.path)):
        for item in place.iterdir() if place.name == 'site-packages' else ():
            if 'freekd_mm' not in item.name and not (site / item.name).exists():
                (site / item.name).symlink_to(item)
    return folder / 'bin' / 'python'


def requirements(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith('.dist-info/METADATA'))
        return re.findall(r'^Requires-Dist: (.+)$', archive.read(name).decode(), re.MULTILINE)


def test_installation_replaces_nothing(wheel):
    """What is required has no bounds: pip leaves alone what is there."""
    assert [line for line in requirements(wheel) if 'extra ==' not in line] == ['Jinja2', 'matplotlib']


def test_a_foreign_environment_gains_freekd_mm_and_loses_nothing(foreign, wheel):
    before = run_there(foreign, '-m', 'pip', 'freeze', '--all').splitlines()
    assert any(line.startswith('torch==') for line in before)
    assert not any(normalize(line).startswith('freekd-mm') for line in before)
    run_there(foreign, '-m', 'pip', 'install', '--no-index', '--no-input', wheel)
    after = run_there(foreign, '-m', 'pip', 'freeze', '--all').splitlines()
    assert [normalize(line.split()[0]) for line in after if line not in before] == ['freekd-mm']
    assert not set(before) - set(after)


@pytest.mark.skipif(not importlib.util.find_spec('mim'), reason='openmim is not installed')
def test_mim_trains_from_the_wheel(foreign, wheel):
    """A config by its name alone, one iteration: takes some seconds, as three programs start."""
    run_there(foreign, '-m', 'pip', 'install', '--no-index', '--no-input', '--force-reinstall', '--no-deps', wheel)
    place = foreign.parents[2]
    write_scenes(place / 'data' / 'scenes', num_train=16, num_val=2, size=64)
    options = 'train_cfg.max_epochs=1 train_dataloader.num_workers=0 train_dataloader.persistent_workers=False '
    options += 'val_dataloader.num_workers=0 val_dataloader.persistent_workers=False'
    mim = ('-c', 'from mim.cli import cli; cli()', 'train', 'freekd_mm', 'det_student.py', '--work-dir', 'work')
    output = run_there(foreign, *mim, '--cfg-options', *options.split())
    assert str(foreign.parents[1]) in re.search(r'Training command is (.+)', output)[1]
    assert (place / 'work' / 'epoch_1.pth').exists()


@pytest.mark.parametrize('stack', MM_DISTRIBUTIONS)
def test_extras_are_the_tested_lines(wheel, stack):
    lines = [line for line in requirements(wheel) if re.search(f'extra == .{stack}.$', line)]
    pins = read_pins(stack)
    assert sorted(line.split(';')[0].strip() for line in lines) == sorted(
        f'{name}=={pins[name]}' for name in MM_DISTRIBUTIONS[stack]
    )


def test_wheel_holds_what_mim_looks_for(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for name in ('tools/train.py', 'tools/test.py', 'tools/doctor.py', 'requirements/openmmlab.txt', 'model-index.yml'):
        assert f'freekd_mm/.mim/{name}' in names
    assert any(name.startswith('freekd_mm/.mim/configs/') for name in names)
    assert not [name for name in names if '__pycache__' in name]
    assert not [name for name in names if name.startswith(('tests/', 'configs/', 'tools/'))]
    assert wheel.name.startswith(f'freekd_mm-{__version__}-')


def test_doctor_reads_the_pins_of_an_installed_wheel(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    names = 'read_pins, requirements_dir'
    code = f'from freekd_mm.doctor.pins import {names}; print(requirements_dir(), read_pins("onedl")["numpy"])'
    # The current folder comes first on the path, before an editable installation.
    answer = run_python(code, tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.split()[0] == str(tmp_path / 'freekd_mm' / '.mim' / 'requirements')


def test_frequency_layer_imports_without_any_mm_package(tmp_path):
    code = 'import freekd_mm.frequency, freekd_mm.doctor.checkup, freekd_mm.doctor.pins'
    answer = run_python(BLOCKER.format(blocked=set(MM_MODULES), code=code), tmp_path)
    assert answer.returncode == 0, answer.stderr


def test_losses_import_with_mmengine_alone(tmp_path):
    code = 'import freekd_mm.losses, freekd_mm.prompts, freekd_mm.connectors'
    answer = run_python(BLOCKER.format(blocked=set(MM_MODULES) - {'mmengine'}, code=code), tmp_path)
    assert answer.returncode == 0, answer.stderr


def test_installed_here_editable():
    """`make setup` leaves this repository installed, in the version that it has."""
    assert importlib.metadata.version('freekd_mm') == __version__
    parts = {path.name for path in (ROOT / 'freekd_mm' / '.mim').iterdir()}
    assert {'configs', 'requirements', 'tools'} <= parts


def test_readme_names_the_two_commands():
    readme = (ROOT / 'README.md').read_text()
    assert 'make demo' in readme
    assert 'make test' in readme
    assert 'make test' in (ROOT / '.ci' / 'run').read_text()


def test_changelog_has_this_version():
    assert f'## {__version__}' in (ROOT / 'CHANGELOG.md').read_text()


def test_line_files_pin_what_they_must():
    """Torch, NumPy and OpenCV are each line's own; nothing pulls the OpenCV that needs libGL."""
    for stack in MM_DISTRIBUTIONS:
        pins = read_pins(stack)
        assert {'torch', 'numpy', 'opencv-python-headless', 'setuptools', *MM_DISTRIBUTIONS[stack]} <= set(pins)
        assert 'opencv-python' not in pins
        assert read_pins('common').items() <= pins.items()


@pytest.mark.parametrize(
    ('line', 'message'),
    [
        ('numpy>=2', r"bad\.txt, line 2: a pin should be 'name==version', but got 'numpy>=2'"),
        ('numpy==2.0; sys_platform == "win32"', r'a marker should be python_version < or >= "X\.Y"'),
    ],
)
def test_pins_that_cannot_be_read(tmp_path, line, message):
    (tmp_path / 'bad.txt').write_text(f'# comment\n{line}\n')
    with pytest.raises(ValueError, match=message):
        read_pins('bad', tmp_path)


def test_pins_follow_markers_and_other_files(tmp_path):
    (tmp_path / 'a.txt').write_text('-r b.txt\nOne_Two==1.0  # why\n')
    (tmp_path / 'b.txt').write_text('ptwt==0.1; python_version < "3.11"\nptwt==1.0; python_version >= "3.11"\n')
    assert read_pins('a', tmp_path, (3, 10)) == {'ptwt': '0.1', 'one-two': '1.0'}
    assert read_pins('a', tmp_path, (3, 12)) == {'ptwt': '1.0', 'one-two': '1.0'}
