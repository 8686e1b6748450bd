"""Where the teacher and its weights come from, and what happens when they do not fit."""

from __future__ import annotations

import functools
import http.server
import threading
from pathlib import Path

import pytest
import tiny_configs
import torch
from distill_cases import CWD, L2, build, det_samples, distilled, images, save_weights

from freekd_mm.checkpoints.sources import sha256
from freekd_mm.runtime.teacher import build_teacher, load_weights

STUDENT = tiny_configs.detector(Path('.'))['model']
TEACHER = {**tiny_configs.detector(Path('.'), head='gfl', width=16, channels=24)['model'], '_scope_': 'mmdet'}
SEGMENTER = tiny_configs.segmenter(Path('.'))['model']
RANDOM = {'model': TEACHER, 'allow_random': True}


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    return str(save_weights(TEACHER, tmp_path_factory.mktemp('teacher') / 'teacher.pth'))


def test_random_teacher_has_to_be_asked_for():
    with pytest.raises(ValueError, match=r"teacher should have a 'checkpoint'.*on purpose, set allow_random=True"):
        build_teacher({'model': TEACHER})
    assert build_teacher(RANDOM)[1] == 'RANDOM weights (allow_random=True)'


def test_no_source():
    with pytest.raises(
        ValueError, match="one of 'cfg_path', 'model', 'timm', 'transformers', 'module', but got nothing"
    ):
        build_teacher({})


@pytest.mark.parametrize(
    ('path', 'message'),
    [
        ('/nowhere/teacher.py', "cfg_path should be a config file or like 'mmdet::.*', but got '/nowhere/teacher.py'"),
        ('mmdet::retinanet/no_such_config.py', 'should name a config of mmdet, but there is none; available in .*_r18'),
    ],
)
def test_unknown_config(path, message):
    with pytest.raises(FileNotFoundError, match=message):
        build_teacher({'cfg_path': path, 'allow_random': True})


def test_package_config():
    """As the model zoo names it; nothing is downloaded for its backbone."""
    model, _ = build_teacher({'cfg_path': 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py', 'allow_random': True})
    assert type(model).__name__ == 'RetinaNet'


def test_config_file_with_its_own_scope(seg_config):
    """A segmenter teaches a detector: the names in its config are looked up in its package."""
    path = seg_config('teacher', width=16)
    distill = {'kd': {'student': 'backbone[0]', 'teacher': 'backbone[1]', 'loss': CWD}}
    model = build(distilled({'model': STUDENT}, {'cfg_path': str(path), 'allow_random': True}, distill)['model'])
    assert type(model.teacher).__module__.startswith('mmseg.')
    assert model.loss(images(), det_samples())['distill.loss_kd'] > 0


def test_weights_are_those_of_the_file(checkpoint):
    model, line = build_teacher({'model': TEACHER, 'checkpoint': checkpoint})
    state = torch.load(checkpoint)['state_dict']
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert line.startswith(checkpoint)
    assert '(100% of' in line


def test_distilled_student_can_teach(tmp_path, checkpoint):
    """Its checkpoint holds the distillation as well, which a teacher has no use for."""
    config = distilled({'model': TEACHER}, RANDOM, {'kd': {'student': 'neck', 'loss': L2}})
    torch.save({'state_dict': build(config['model']).state_dict()}, tmp_path / 'student.pth')
    _, line = build_teacher({'model': TEACHER, 'checkpoint': str(tmp_path / 'student.pth')})
    assert '(100% of' in line


def edited(checkpoint, tmp_path, edit):
    file = torch.load(checkpoint)
    edit(file['state_dict'])
    torch.save(file, tmp_path / 'edited.pth')
    return str(tmp_path / 'edited.pth')


def drop(prefix):
    def edit(state):
        for key in [key for key in state if key.startswith(prefix)]:
            del state[key]

    return edit


def test_missing_and_reshaped_keys_are_named(checkpoint, tmp_path):
    def edit(state):
        del state['neck.fpn_convs.0.conv.weight']
        state['bbox_head.gfl_cls.bias'] = torch.zeros(80)

    path = edited(checkpoint, tmp_path, edit)
    model = build(TEACHER)
    message = (
        r'only 9\d% of its \d+ weights do; missing: neck.fpn_convs.0.conv.weight; '
        r'other shape: bbox_head.gfl_cls.bias \(6,\) but \(80,\) in the file.*set allow_mismatch=True'
    )
    with pytest.raises(RuntimeError, match=message):
        load_weights(model, path)
    before = model.bbox_head.gfl_cls.bias.clone()
    line = load_weights(model, path, allow_mismatch=True)
    assert '100%' not in line
    assert torch.equal(model.bbox_head.gfl_cls.bias, before)
    assert torch.equal(model.backbone.conv1.weight, torch.load(path)['state_dict']['backbone.conv1.weight'])


def test_less_than_most_is_not_accepted(checkpoint, tmp_path):
    path = edited(checkpoint, tmp_path, drop('backbone.layer4'))
    with pytest.raises(RuntimeError, match=r'and \d+ more.*allow_mismatch accepts no less than 90%'):
        load_weights(build(TEACHER), path, allow_mismatch=True)


def test_checkpoint_of_another_model(tmp_path):
    path = save_weights(SEGMENTER, tmp_path / 'segmenter.pth', 'mmseg')
    with pytest.raises(RuntimeError, match=r'should fit GFL, but only .*config and checkpoint belong together'):
        load_weights(build(TEACHER), str(path))


# Downloads.


@pytest.fixture
def server(tmp_path):
    handler = functools.partial(QuietHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{httpd.server_address[1]}'
        httpd.shutdown()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'hub'))
    return tmp_path / 'hub' / 'hub' / 'checkpoints'


def test_download_with_the_right_hash(checkpoint, server, hub, tmp_path):
    name = f'gfl_tiny-{sha256(checkpoint)[:8]}.pth'
    (tmp_path / name).write_bytes(Path(checkpoint).read_bytes())
    teacher = {'model': TEACHER, 'checkpoint': f'{server}/{name}'}
    assert '(100% of' in build_teacher(teacher)[1]
    (tmp_path / name).unlink()
    assert '(100% of' in build_teacher(teacher)[1]  # from the cache
    assert [path.name for path in hub.iterdir()] == [name]


def test_download_with_a_wrong_hash(checkpoint, server, hub, tmp_path):
    name = 'gfl_tiny-0123abcd.pth'
    (tmp_path / name).write_bytes(Path(checkpoint).read_bytes())
    with pytest.raises(RuntimeError, match=r'cannot download .*invalid hash value .*0123abcd.* by other means'):
        build_teacher({'model': TEACHER, 'checkpoint': f'{server}/{name}'})
    assert not list(hub.iterdir())


def test_download_that_does_not_exist(server, hub):
    with pytest.raises(RuntimeError, match=r'cannot download .*Download it by other means and give its local path'):
        build_teacher({'model': TEACHER, 'checkpoint': f'{server}/nothing.pth'})
    assert not list(hub.iterdir())
