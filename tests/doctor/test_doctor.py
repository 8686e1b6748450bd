"""The doctor on sound, incomplete, clashing and broken environments."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from freekd_mm.doctor import checkup
from freekd_mm.doctor.checkup import examine, find_stack, installed_distributions, probe
from freekd_mm.doctor.pins import MM_DISTRIBUTIONS, PIN_SETS, fitting_pins, read_pins
from freekd_mm.doctor.rules import MMCV_LIKE, PROBES
from freekd_mm.version import __version__

ROOT = Path(__file__).resolve().parents[2]
PINS = {name: read_pins(name) for name in PIN_SETS}
FINE = dict.fromkeys(PROBES, '')


def problems(report, fatal=True) -> dict[str, str]:
    return {
        problem.subject: f'{problem.text} | {problem.remedy}' for problem in report.problems if problem.fatal is fatal
    }


def without(stack: str, *names: str) -> dict[str, str]:
    return {name: version for name, version in PINS[stack].items() if name not in names}


def missing(module: str) -> str:
    return f"ModuleNotFoundError: No module named '{module}'"


@pytest.fixture(autouse=True)
def _python311(monkeypatch):
    """Whatever runs the tests: the doctor sees Python 3.11, and an mmdet and an mmseg of the default line."""
    monkeypatch.setattr(checkup, 'sys', SimpleNamespace(version_info=(3, 11, 7), executable=sys.executable))
    monkeypatch.setattr(checkup, 'accepted_mmcv', lambda: {'mmdet': '2.2.0', 'mmseg': '2.2.0'})


@pytest.mark.parametrize('stack', PIN_SETS)
def test_a_tested_environment_is_sound(stack):
    report = examine(stack, PINS[stack], FINE)
    assert report.ok
    assert not report.problems
    screen = report.text()
    assert f'{stack} (this one)' in screen
    assert 'Nothing is missing or clashing.' in screen
    assert len(screen.splitlines()) < 24
    for other in MM_DISTRIBUTIONS:
        assert PINS[other]['torch'] in screen
        assert PINS[other]['mmrazor'] in screen


def test_nothing_at_all():
    imports = {module: missing('torch') for module in PROBES}
    report = examine(None, {}, imports)
    assert not report.ok
    assert set(problems(report)) >= {'torch', 'numpy', 'mmengine', 'mmcv', 'mmdet', 'mmsegmentation'}
    assert f'{sys.executable} -m pip install torch=={PINS["openmmlab"]["torch"]}' in report.text()


def test_missing_mmcv_is_compiled_for_the_torch_that_is_here():
    imports = {**FINE, **dict.fromkeys(('mmcv', 'mmcv.ops', 'mmdet.models', 'mmseg.models'), missing('mmcv'))}
    report = examine(None, without('openmmlab', 'mmcv'), imports)
    assert list(problems(report)) == ['mmcv']
    remedy = problems(report)['mmcv']
    for part in ('MMCV_WITH_OPS=1', '--no-build-isolation', '--no-cache-dir', '--no-binary=mmcv', 'mmcv==2.1.0'):
        assert part in remedy


def test_a_detection_user_needs_no_mmseg():
    report = examine(
        None, without('openmmlab', 'mmsegmentation', 'mmrazor'), {**FINE, 'mmseg.models': missing('mmseg')}
    )
    assert report.ok
    assert set(problems(report, fatal=False)) == {'mmsegmentation', 'mmrazor'}
    assert not examine('openmmlab', without('openmmlab', 'mmsegmentation'), FINE).ok


def test_both_lines_at_once():
    report = examine(None, {**PINS['openmmlab'], 'onedl-mmcv': '2.3.6'}, FINE)
    text = problems(report)['mmcv']
    assert 'mmcv and onedl-mmcv install the same files' in text
    assert 'pip uninstall -y mmcv onedl-mmcv && ' in text
    assert 'mmcv==2.1.0' in text


def test_one_package_of_the_other_line():
    installed = {**without('openmmlab', 'mmengine'), 'onedl-mmengine': '0.10.12'}
    report = examine(None, installed, FINE)
    assert report.ok
    assert 'onedl-mmengine belongs to the other line' in problems(report, fatal=False)['mmengine']


@pytest.mark.parametrize('name', ['mmcv-lite', 'mmcv-full'])
def test_mmcv_of_another_kind(name):
    report = examine(None, {**without('openmmlab', 'mmcv'), name: '2.1.0'}, {**FINE, 'mmcv.ops': missing('mmcv._ext')})
    text = problems(report)['mmcv']
    assert f'{name} is not the mmcv with operators' in text
    assert f'uninstall -y {name}' in text


def test_other_versions_are_noted_and_an_error_where_a_line_is_asked_for():
    installed = {**PINS['openmmlab'], 'mmdet': '3.2.0', 'torch': '2.5.1+cu121', 'numpy': '2.2.6'}
    report = examine(None, installed, FINE)
    assert report.ok
    notes = problems(report, fatal=False)
    assert '3.2.0 is here, 3.3.0 is tested' in notes['mmdet']
    assert '2.5.1 is here, between tested ones' in notes['torch']
    assert 'numpy==1.26.4' in notes['numpy']
    assert set(problems(examine('openmmlab', installed, FINE))) == {'mmdet', 'numpy'}


def test_opencv_without_libgl():
    error = 'ImportError: libGL.so.1: cannot open shared object file: No such file or directory'
    installed = {**without('openmmlab', 'opencv-python-headless'), 'opencv-python': '4.11.0.86'}
    imports = {**FINE, **dict.fromkeys(('cv2', 'mmengine', 'mmcv', 'mmdet.models'), error)}
    report = examine(None, installed, imports)
    # mmengine and mmcv fail for the same reason: said once.
    assert list(problems(report)) == ['opencv']
    text = problems(report)['opencv']
    assert 'uninstall -y opencv-python && ' in text
    assert 'opencv-python-headless==4.11.0.86' in text


def test_two_opencvs():
    report = examine(None, {**PINS['openmmlab'], 'opencv-python': '4.11.0.86'}, FINE)
    assert report.ok
    assert 'install the same files' in problems(report, fatal=False)['opencv']


def test_mmcv_compiled_for_another_torch():
    error = 'ImportError: /env/mmcv/_ext.cpython-311-x86_64-linux-gnu.so: undefined symbol: _ZN3c1017RegisterOperators'
    report = examine(None, PINS['onedl'], {**FINE, **dict.fromkeys(('mmcv.ops', 'mmdet.models'), error)})
    assert list(problems(report)) == ['onedl-mmcv']
    text = problems(report)['onedl-mmcv']
    assert 'compiled for another PyTorch' in text
    assert '--no-binary=onedl-mmcv onedl-mmcv==2.3.6' in text


def test_mmcv_without_cuda_beside_a_gpu():
    imports = {**FINE, 'gpu': 'NVIDIA H200', 'mmcv_cuda': 'not available'}
    report = examine(None, PINS['openmmlab'], imports)
    assert 'compiled for the CPU only' in problems(report)['mmcv']
    assert 'GPU: NVIDIA H200' in report.text()
    assert examine(None, PINS['openmmlab'], {**imports, 'mmcv_cuda': '13.0'}).ok


def test_a_requirement_of_a_package_is_missing():
    report = examine(None, without('openmmlab', 'ftfy'), {**FINE, 'mmseg.models': missing('ftfy')})
    assert list(problems(report)) == ['ftfy']
    assert 'mmseg needs it' in problems(report)['ftfy']
    assert f'ftfy=={PINS["openmmlab"]["ftfy"]}' in problems(report)['ftfy']


def test_a_requirement_with_a_name_of_its_own_is_missing():
    report = examine(None, without('onedl', 'imaug'), {**FINE, 'mmdet.datasets': missing('imgaug')})
    assert 'imaug==0.4.3' in problems(report)['imaug']


def test_version_bound_of_mmdet_names_mmcv():
    error = 'AssertionError: MMCV==2.2.0 is used but incompatible. Please install mmcv>=2.0.0rc4, <2.2.0.'
    report = examine(None, {**PINS['openmmlab'], 'mmcv': '2.2.0'}, {**FINE, 'mmdet.models': error})
    assert list(problems(report)) == ['mmcv']
    assert 'mmcv==2.1.0' in problems(report)['mmcv']


def test_files_are_gone():
    report = examine(None, PINS['openmmlab'], {**FINE, 'mmdet.models': missing('mmdet')})
    assert 'its files are gone' in problems(report)['mmdet']
    assert '--force-reinstall mmdet==3.3.0' in problems(report)['mmdet']


@pytest.mark.parametrize(
    ('line', 'torch', 'python', 'pins'),
    [
        ('openmmlab', '2.1.2', (3, 8), 'py38-torch21'),
        ('openmmlab', '1.13.1+cu117', (3, 9), 'py38-torch113'),
        ('openmmlab', '1.13.1', (3, 10), 'openmmlab'),
        ('openmmlab', '', (3, 13), 'openmmlab'),
        ('onedl', '2.1.2', (3, 9), 'onedl'),
    ],
)
def test_nearest_pins(line, torch, python, pins):
    assert fitting_pins(line, torch, python) == pins


#: What a user has, what is wrong with it, and what the remedy names.
UNFIT = {
    'no torch': ({'torch': None}, 'torch: is not installed', 'torch=='),
    'no mmcv': ({'mmcv': None}, 'mmcv: is not installed', 'mmcv==2'),
    'mmcv-lite': (
        {'mmcv': None, 'mmcv-lite': '2.1.0'},
        'mmcv-lite is not the mmcv with operators',
        'uninstall -y mmcv-lite',
    ),
    'mmcv 1.x': ({'mmcv': None, 'mmcv-full': '1.7.2'}, 'mmcv-full is not the mmcv', 'uninstall -y mmcv-full'),
    'mmcv 1.x by its other name': (
        {'mmcv': '1.7.2'},
        'mmcv: 1.7.2 is here, but freekd_mm needs 2.0 or newer',
        'mmcv==2',
    ),
    'mmcv 2.2': ({'mmcv': '2.2.0'}, 'mmcv: 2.2.0 is here, but mmdet 3.3.0 accepts versions below 2.2.0', 'mmcv==2.1.0'),
    'mmdet 2.x': ({'mmdet': '2.28.2'}, 'mmdet: 2.28.2 is here, but freekd_mm needs 3.0 or newer', 'mmdet==3'),
    'mmengine 0.7': ({'mmengine': '0.7.4'}, 'mmengine: 0.7.4 is here, but freekd_mm needs 0.8', 'mmengine==0'),
    'numpy 2': ({'numpy': '2.0.2', 'torch': '2.1.2+cu118'}, 'numpy: 2.0.2 is here, but PyTorch 2.1.2', '"numpy<2"'),
    'old torch': ({'torch': '1.12.1'}, 'needs PyTorch 1.13 or newer, but this is PyTorch 1.12', 'torch==2.1.2'),
}
TOOLS = sorted(path.name for path in (ROOT / 'tools').glob('*.py') if 'run(main)' in path.read_text())


def run_with(tmp_path, changes, *command):
    """Runs a command that sees fakes of the default environment alone, with some changes."""
    versions = {**PINS['openmmlab'], **changes}
    for name, version in versions.items():
        if version is not None:
            fake_package(tmp_path, name, "mmcv_maximum_version = '2.2.0'" if name == 'mmdet' else '', version)
    environment = {'PYTHONPATH': os.pathsep.join([str(tmp_path), str(ROOT)]), 'PATH': os.environ['PATH']}
    # -S: no site-packages.
    command = [sys.executable, '-S', *command]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)


@pytest.mark.parametrize('case', UNFIT)
def test_a_tool_says_in_one_line_what_cannot_work(case, tmp_path):
    changes, wrong, remedy = UNFIT[case]
    answer = run_with(tmp_path, changes, str(ROOT / 'tools' / 'train.py'), 'config.py')
    assert answer.returncode == 1
    assert not answer.stdout
    (line,) = answer.stderr.splitlines()
    assert wrong in line
    assert remedy in line


@pytest.mark.parametrize('tool', TOOLS)
def test_every_tool_says_it(tool, tmp_path):
    answer = run_with(tmp_path, {'mmcv': '2.2.0'}, str(ROOT / 'tools' / tool))
    assert answer.returncode == 1
    assert answer.stderr.startswith('mmcv: 2.2.0 is here, but mmdet 3.3.0 accepts')
    assert answer.stderr.count('\n') == 1


@pytest.mark.parametrize('case', [case for case in UNFIT if case != 'old torch'])
def test_the_doctor_says_it_too(case):
    changes, wrong, remedy = UNFIT[case]
    installed = {name: version for name, version in {**PINS['openmmlab'], **changes}.items() if version is not None}
    report = examine(None, installed, FINE, {'mmdet': '2.2.0'})
    assert not report.ok
    text = ' '.join(f'{name}: {text}' for name, text in problems(report).items())
    assert wrong in text
    assert remedy in text


def test_what_fails_because_of_a_wrong_package_is_not_said_as_well():
    error = 'AssertionError: MMCV==2.1.0 is used but incompatible. Please install mmcv>=1.3.17, <=1.8.0.'
    imports = {**FINE, 'mmdet.models': error, 'mmseg.models': error}
    report = examine(None, {**PINS['openmmlab'], 'mmdet': '2.28.2'}, imports, {'mmdet': '1.8.0', 'mmseg': '2.2.0'})
    assert list(problems(report)) == ['mmdet']


@pytest.mark.parametrize(
    ('torch', 'vision', 'needed'),
    [('2.13.0', '0.29.1', '0.28'), ('1.13.1', '0.15.1', '0.14'), ('2.14.1', '0.29.1', ''), ('1.13.1', '0.14.1', '')],
)
def test_torchvision_of_another_torch(torch, vision, needed):
    report = examine(None, {**PINS['openmmlab'], 'torch': torch, 'torchvision': vision}, FINE)
    note = problems(report, fatal=False).get('torchvision', '')
    assert bool(note) is bool(needed)
    assert f'PyTorch {torch} needs {needed}' in note or not needed
    assert report.ok
    assert 'torchvision  ' in report.text()


def test_the_tightest_limit_is_said_once():
    report = examine(None, {**PINS['openmmlab'], 'mmcv': '2.2.0'}, FINE, {'mmdet': '2.2.0', 'mmseg': '2.1.0'})
    assert [problem.remedy.count('mmcv==2.0.1') for problem in report.problems if problem.fatal] == [1]


def test_import_says_what_is_too_old(tmp_path):
    code = 'import sys\ntry:\n    import freekd_mm\nexcept ImportError as error:\n    print(error)'
    answer = run_with(tmp_path, {'torch': '1.12.1'}, '-c', code)
    assert answer.stdout.startswith(f'freekd_mm {__version__} needs PyTorch 1.13 or newer, but this is PyTorch 1.12')
    assert not answer.stderr
    answer = run_with(tmp_path / 'b', {'torch': '1.12.1'}, '-c', code.replace('ImportError', 'KeyError'))
    assert (answer.returncode, answer.stderr.count('\n')) == (1, 1)


def test_find_stack():
    assert find_stack({'mmrazor': '1.0.0'}) == 'openmmlab'
    assert find_stack({'onedl-mmengine': '0.10.12', 'onedl-mmcv': '2.3.6', 'mmdet': '3.3.0'}) == 'onedl'


def fake_package(folder: Path, name: str, code: str, version: str = '9.9', distribution: str = '') -> None:
    (folder / name).mkdir(parents=True)
    (folder / name / '__init__.py').write_text(code)
    info = folder / f'{name}-{version}.dist-info'
    info.mkdir()
    (info / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: {distribution or name}\nVersion: {version}\n')


def test_probe_survives_whatever_an_import_does(tmp_path, monkeypatch):
    fake_package(tmp_path, 'raises', 'raise ValueError("first line\\nsecond line")')
    fake_package(tmp_path, 'leaves', 'import sys; sys.exit(3)')
    fake_package(tmp_path, 'crashes', 'import os; os.abort()')
    fake_package(tmp_path, 'hangs', 'import time; time.sleep(60)')
    fake_package(tmp_path, 'talks', 'print("[broken json"); import os; os.system("echo more")')
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    modules = ('raises', 'leaves', 'crashes', 'talks', 'not_there', 'hangs', 'json')
    answers = probe(modules, timeout=10)
    assert answers == {
        'raises': 'ValueError: second line',
        'leaves': 'SystemExit: 3',
        'crashes': 'the import crashes Python (status -6)',
        'talks': '',
        'not_there': missing('not_there'),
        'hangs': 'the import takes more than 10 s',
        'json': '',
    }


def test_half_removed_package_does_not_stop_the_listing(tmp_path, monkeypatch):
    (tmp_path / 'gone-1.0.dist-info').mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert 'torch' in installed_distributions()


def test_the_command_on_a_broken_environment(tmp_path):
    """The real thing: a broken mmdet and a broken mmcv come first on the path."""
    here = installed_distributions()
    mmcv, mmdet = (
        next(name for name in names if name in here) for names in (MMCV_LIKE, ('mmdet', 'onedl-mmdetection'))
    )
    fake_package(tmp_path, 'mmcv', 'raise RuntimeError("no way\\nthe last line")', here[mmcv], mmcv)
    fake_package(tmp_path, 'mmdet', 'import mmcv', distribution=mmdet)
    environment = {**os.environ, 'PYTHONPATH': str(tmp_path)}
    command = [sys.executable, str(ROOT / 'tools' / 'doctor.py')]
    answer = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
    assert answer.returncode == 1, answer.stdout + answer.stderr
    assert 'Traceback' not in answer.stdout + answer.stderr
    assert 'import mmcv fails: RuntimeError: the last line' in answer.stdout
    assert 'import mmdet' not in answer.stdout
    assert '9.9 is here' in answer.stdout


def test_the_command_here():
    """This environment is one of the tested lines, and the doctor agrees."""
    command = [sys.executable, '-m', 'freekd_mm.doctor.checkup']
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert 'WRONG' not in answer.stdout
