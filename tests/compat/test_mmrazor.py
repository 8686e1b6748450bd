"""mmrazor 1.0.0, as it is on the package index, on this PyTorch: it imports, it trains, and it still needs our help."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

from freekd_mm.compat import install

install()
pytest.importorskip('mmrazor')
INSTALL = 'from freekd_mm.compat import install; install()\n'


def run_python(code: str, tmp_path) -> subprocess.CompletedProcess:
    """Runs code in a new Python: imports of this process must not help."""
    return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=tmp_path, check=False)


def tap(recorder: str, level: int | None, student: bool) -> dict:
    place = {'recorder': recorder, 'from_student': student}
    return place if level is None else {**place, 'data_idx': level}


def single_teacher_distill(student, teacher, recorder, source, level, loss) -> dict:
    """An algorithm of mmrazor and a loss of mmrazor, wired in mmrazor's own terms."""
    recorders = {recorder: {'type': 'ModuleOutputs', 'source': source}}
    return {
        'type': 'mmrazor.SingleTeacherDistill',
        'architecture': student,
        'teacher': teacher,
        'teacher_trainable': False,
        'teacher_norm_eval': True,
        'distiller': {
            'type': 'ConfigurableDistiller',
            # Recorders are named without a scope inside mmrazor.
            '_scope_': 'mmrazor',
            'student_recorders': recorders,
            'teacher_recorders': recorders,
            'distill_losses': {'loss_kd': loss},
            'loss_forward_mappings': {
                'loss_kd': {
                    'preds_S': tap(recorder, level, student=True),
                    'preds_T': tap(recorder, level, student=False),
                }
            },
        },
    }


LOSSES = {
    'cwd': {'type': 'mmrazor.ChannelWiseDivergence', 'tau': 4.0, 'loss_weight': 5.0},
    'pkd': {'type': 'mmrazor.PKDLoss', 'loss_weight': 2.0},
}


class Snapshot(Hook):
    """Keeps the weights with which the training begins."""

    def before_train(self, runner) -> None:
        self.weights = {name: value.clone() for name, value in runner.model.named_parameters()}


def train(path, model) -> tuple[Runner, dict]:
    """Trains the config for its two steps with ``model`` in place of its own; returns runner and last losses."""
    config = Config.fromfile(path)
    config.model = model
    config.default_hooks = {**config.get('default_hooks', {}), 'logger': {'type': 'LoggerHook', 'interval': 1}}
    runner = Runner.from_cfg(config)
    begin = Snapshot()
    runner.register_hook(begin)
    runner.train()
    changed = {name for name, value in runner.model.named_parameters() if not torch.equal(value, begin.weights[name])}
    assert any(name.startswith('architecture.') for name in changed)
    assert not any(name.startswith('teacher.') for name in changed)
    return runner, {key: history.current() for key, history in runner.message_hub.log_scalars.items()}


@pytest.mark.parametrize('loss', LOSSES)
def test_trains_a_detector(det_config, loss):
    student = det_config('student', width=8)
    teacher = Config.fromfile(det_config('teacher', width=16)).model
    # mmrazor takes one level of the neck's tuple.
    model = single_teacher_distill(Config.fromfile(student).model, teacher, 'neck', 'neck', 0, LOSSES[loss])
    runner, scalars = train(student, model)
    assert runner.iter == 2
    assert scalars['train/distill.loss_kd'] > 0
    assert scalars['train/student.loss_cls'] > 0


@pytest.mark.parametrize('loss', LOSSES)
def test_trains_a_segmenter(seg_config, loss):
    student = seg_config('student', width=8)
    teacher = Config.fromfile(seg_config('teacher', width=16)).model
    logits = 'decode_head.conv_seg'
    model = single_teacher_distill(Config.fromfile(student).model, teacher, 'logits', logits, None, LOSSES[loss])
    runner, scalars = train(student, model)
    assert runner.iter == 2
    assert scalars['train/distill.loss_kd'] > 0
    assert scalars['train/student.decode.loss_ce'] > 0


def test_mmrazor_names_inside_our_config(tmp_path):
    code = f"""{INSTALL}
from mmengine.registry import MODELS
ours = MODELS.build(dict(type='freekd_mm.FeatureMSELoss'))
theirs = MODELS.build(dict(type='mmrazor.PKDLoss'))
print(type(ours).__module__, type(theirs).__module__)
"""
    answer = run_python(code, tmp_path)
    assert answer.returncode == 0, answer.stderr
    ours, theirs = answer.stdout.split()
    assert ours.startswith('freekd_mm.')
    assert theirs.startswith('mmrazor.')


def test_stand_in_is_still_needed(tmp_path):
    """Fails when mmrazor imports by itself: then freekd_mm/compat/mmrazor.py should go."""
    answer = run_python('import mmrazor.models', tmp_path)
    assert answer.returncode != 0, 'mmrazor imports without freekd_mm: remove freekd_mm/compat/mmrazor.py'


def test_stand_in_is_needed_for_the_quantization_alone(tmp_path):
    """What breaks is the part that we replace, and nothing else."""
    code = f"""{INSTALL}
import sys
from freekd_mm.compat.mmrazor import QUANTIZATION
del sys.modules[QUANTIZATION]
import mmrazor.structures.quantization
"""
    answer = run_python(code, tmp_path)
    assert answer.returncode != 0, 'the quantization of mmrazor imports: remove its stand-in'
    assert 'quantization' in answer.stderr


def test_upper_bound_is_passed_and_mmcv_left_as_it_is(tmp_path):
    code = f"""
import mmcv
from freekd_mm.compat import mmrazor as compat
mmcv.__version__ = '2.9.9'
compat.installed_version = lambda name: '2.9.9'
{INSTALL}
import mmrazor
print(mmcv.__version__)
"""
    answer = run_python(code, tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.strip() == '2.9.9'


def test_import_without_mmrazor(tmp_path):
    """Without mmrazor an import of it fails as it would without us."""
    code = f"""
from importlib.machinery import PathFinder
find = PathFinder.find_spec
PathFinder.find_spec = classmethod(lambda cls, name, *rest: None if name == 'mmrazor' else find(name, *rest))
{INSTALL}
import mmrazor
"""
    answer = run_python(code, tmp_path)
    assert "ModuleNotFoundError: No module named 'mmrazor'" in answer.stderr


def test_one_line_in_a_config_of_mmrazor_alone(det_config, tmp_path):
    """Nothing else of ours is named, and nothing else imports mmrazor before."""
    student = Config.fromfile(det_config('student'))
    student.model = single_teacher_distill(student.model, student.model, 'neck', 'neck', 0, LOSSES['pkd'])
    student.custom_imports = {'imports': ['freekd_mm.compat.installed']}
    student.dump(tmp_path / 'razor.py')
    code = """
from mmengine.config import Config
from mmengine.runner import Runner
Runner.from_cfg(Config.fromfile('razor.py')).train()
"""
    answer = run_python(code, tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert 'distill.loss_kd' in answer.stdout
