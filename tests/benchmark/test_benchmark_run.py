"""A whole benchmark of two-iteration runs: jobs, cache, failures, resuming and the report."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import re
import subprocess
import sys

import pytest
import tiny_configs
import torch
import yaml
from mmengine.config import Config

from freekd_mm.benchmark import records
from freekd_mm.benchmark import run as runs
from freekd_mm.benchmark.images import IMAGES_FILE
from freekd_mm.benchmark.jobs import ConfigMaker, make_jobs
from freekd_mm.benchmark.plan import Method, load_plan
from freekd_mm.benchmark.run import benchmark, run_job, to_do
from freekd_mm.compat.versions import torch_at_least
from freekd_mm.engine.workdir import LOCK

pytest.importorskip('mmdet')


@pytest.fixture(scope='module')
def plan_file(tmp_path_factory, scenes_root):
    folder = tmp_path_factory.mktemp('plan')
    student, teacher = (
        tiny_configs.write(folder / f'{name}.py', tiny_configs.detector(scenes_root, width=width))
        for name, width in (('student', 8), ('teacher', 16))
    )
    plan = {
        'name': 'tiny',
        'student': str(student),
        'teacher': str(teacher),
        'metric': 'coco/bbox_mAP',
        'unit': 'AP',
        'factor': 100,
        'seeds': [0],
        'methods': {
            'mse': {'entries': 'mse', 'set': {'mse.loss.loss_weight': 0.5}},
            'broken': {'entries': {'x': {'student': 'neck', 'loss': {'type': 'NoSuchLoss'}}}},
        },
    }
    path = folder / 'plan.yaml'
    path.write_text(yaml.safe_dump(plan, sort_keys=False))
    return path


@pytest.fixture(scope='module')
def first(plan_file, tmp_path_factory):
    """A benchmark whose lines lie elsewhere: its work directory, the lines, and what it said."""
    folder = tmp_path_factory.mktemp('benchmark')
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        status = benchmark(str(plan_file), folder / 'work', processes=2, plots=False, lines=folder / 'kept/lines.jsonl')
    assert status == 1
    return folder / 'work', folder / 'kept/lines.jsonl', said.getvalue()


def test_a_detector_that_finds_nothing_counts_as_zero(monkeypatch):
    monkeypatch.setattr(runs, 'evaluate', lambda cfg, checkpoint: {})  # as with MMDetection's metric then
    cfg = Config({'work_dir': '.', 'val_dataloader': {}, 'val_evaluator': {}})
    assert runs._evaluate(cfg, 'x.pth', 'val', 'coco/bbox_mAP') == {'coco/bbox_mAP': 0.0}


def test_a_benchmark_runs_and_reports_failures(first):
    work, lines, said = first
    assert 'FAILED broken seed 0: ValueError' in said
    found = {record['method']: record for record in records.read(lines)}
    assert set(found) == {'teacher', 'student', 'mse', 'broken'}
    for method in ('teacher', 'student', 'mse'):
        assert 0 <= found[method]['val']['coco/bbox_mAP'] <= 1
        assert {'test', 'train_seconds', 'machine', 'commit', 'hash'} <= set(found[method])
        instructions = found[method]['machine']['instructions']
        assert instructions == torch.backends.cpu.get_cpu_capability() if torch_at_least(2, 1) else instructions
        assert found[method]['history'][-1][0] == 1.0
    assert len(found['mse']['teacher']) == 12
    assert all('done ' + name in said for name in ('teacher', 'student', 'mse'))
    assert len(list(work.rglob(f'runs/*/*/{IMAGES_FILE}'))) == 2
    assert re.search(r'\| broken +\| 0 \(1 failed\) +\|', lines.with_name('tiny.md').read_text())


def test_lines_outlive_the_work_directory(first, plan_file, tmp_path):
    """Nothing is run again; a new seed needs the teacher, whose file is not there, so it is trained anew."""
    _, lines, _ = first
    plan = load_plan(plan_file).select(['mse'], None)
    done = records.latest(records.read(lines))
    kind = records.kind({'machine': records.machine()})
    assert not to_do(make_jobs(plan, ConfigMaker(plan), tmp_path, kind), done)
    plan = plan.select(None, [1])
    jobs = to_do(make_jobs(plan, ConfigMaker(plan), tmp_path, kind), done)
    assert [str(job) for job in jobs] == ['teacher seed 0', 'student seed 1', 'mse seed 1']


def test_a_report_names_the_runs_of_an_older_config(first, plan_file, tmp_path, capsys):
    _, lines, _ = first
    file = tmp_path / 'lines.jsonl'
    mse = next(line for line in records.read(lines) if line['method'] == 'mse')
    old = [{**mse, 'seed': seed, 'hash': 'old'} for seed in (0, 1)]
    file.write_text(''.join(f'{json.dumps(line)}\n' for line in old) + lines.read_text())
    assert benchmark(str(plan_file), tmp_path, action='report', plots=False, lines=file) == 0
    page = file.with_name('tiny.md').read_text()
    assert re.search(r'\| mse +\| 1 +\|', page)
    assert 'Runs of an older config of the plan are left out (2): mse 0, mse 1.' in page
    # A plan without seeds only reports: its methods need not be ones that can be trained.
    past = tmp_path / 'past.yaml'
    past.write_text(yaml.safe_dump({'base': str(plan_file), 'seeds': [], 'methods': {'gone': None}}))
    records.append(file, {**mse, 'method': 'gone'})
    assert benchmark(str(past), tmp_path, action='report', plots=False, lines=file) == 0
    assert re.search(r'\| gone +\| 1 +\|', file.with_name('tiny.md').read_text())
    capsys.readouterr()


def test_it_continues_where_it_was(first, plan_file, capsys):
    """The second call runs the failure alone; a job that was interrupted after its last checkpoint resumes there."""
    work, lines, _ = first
    found = {record['method']: record for record in records.read(lines)}
    assert benchmark(str(plan_file), work, plots=False, lines=lines) == 1
    second = capsys.readouterr().out
    assert '4 jobs, 3 done' in second
    assert 'started broken' in second
    assert second.count('started') == 1
    assert len(records.read(lines)) == 5
    folder = next(work.glob('*/runs/tiny/mse-*'))
    result = run_job(folder)
    assert result['resumed']
    # The parts of a run before and after a stop are one.
    assert result['train_seconds'] >= found['mse']['train_seconds'] > 0
    assert result['history'] == found['mse']['history']
    assert result['val'] == found['mse']['val']


def test_a_row_may_be_the_student_alone_with_another_schedule(plan_file, tmp_path):
    plan = load_plan(plan_file)
    twice = Method('student-2x', None, options={'train_cfg.max_epochs': 7})
    plan = dataclasses.replace(plan, methods={'student-2x': twice})
    row = make_jobs(plan, ConfigMaker(plan), tmp_path)[-1]
    alone, longer = ConfigMaker(plan).student(0).to_dict(), row.config().to_dict()
    assert (row.method, row.needs, longer['train_cfg'].pop('max_epochs')) == ('student-2x', (), 7)
    alone['train_cfg'].pop('max_epochs')
    assert longer == alone


def test_all_methods_see_the_students_own_config(plan_file, tmp_path):
    plan = load_plan(plan_file)
    maker = ConfigMaker(plan)
    jobs = {job.method: job for job in make_jobs(plan, maker, tmp_path)}
    alone, distilled = jobs['student'].config().to_dict(), jobs['mse'].config().to_dict()
    assert distilled['model']['architecture'] == alone['model']
    assert distilled['model']['distill']['mse']['loss']['loss_weight'] == 0.5
    assert distilled['model']['teacher']['checkpoint'] == str(jobs['teacher'].product)
    for cfg in (alone, distilled):
        del cfg['model']
    assert distilled == alone
    assert jobs['mse'].needs == (jobs['teacher'].product,)


def test_a_weight_is_a_factor_on_each_entry(plan_file):
    maker = ConfigMaker(load_plan(plan_file))
    entries = maker.entries(Method('both', 'mse+pkd', weight=0.3, set={'pkd.loss.loss_weight': 2.0}), None)
    assert [entry['weight'] for entry in entries.values()] == [0.3, 0.3]
    assert entries['pkd']['loss']['loss_weight'] == 2.0
    whole = maker.entries(Method('both', 'mse+pkd', weight=3), None)
    assert [repr(entry['weight']) for entry in whole.values()] == ['3', '3'], 'not 3.0, which has another hash'
    for weight, own, found in ((3, 0.5, 1.5), ('auto', 0.5, 'auto'), (3, 'auto', 3)):
        method = Method('both', 'mse+pkd', weight=weight, set={'pkd.weight': own})
        assert [entry['weight'] for entry in maker.entries(method, None).values()] == [weight, found]


def test_prompts_are_made_once_and_only_when_needed(plan_file, tmp_path):
    plan = load_plan(plan_file)
    freekd = Method('freekd', 'freekd', prompt='short')
    methods = {**plan.methods, 'freekd': freekd, 'again': dataclasses.replace(freekd, name='again')}
    plan = dataclasses.replace(plan, methods=methods, prompts={'short': {'max_iters': 1}, 'unused': {}})
    maker = ConfigMaker(plan)
    jobs = make_jobs(plan, maker, tmp_path)
    assert [job.method for job in jobs] == ['teacher', 'student', 'mse', 'broken', 'prompt:short', 'freekd', 'again']
    prompt = jobs[4]
    assert prompt.needs == (jobs[0].product,)
    assert jobs[5].needs == jobs[6].needs == (jobs[0].product, prompt.product)
    hook = prompt.config().custom_hooks[-1]
    assert (hook.type, hook.modules, hook.max_iters) == ('freekd_mm.FrequencyPromptHook', 'neck', 1)
    assert jobs[5].config().model.distill.freekd.loss.prompt == str(prompt.product)


def test_inheritance_is_an_option_of_the_model(plan_file, tmp_path):
    plan = load_plan(plan_file)
    heir = Method('heir', 'mse', inherit=['bbox_head'])
    jobs = {
        job.method: job
        for job in make_jobs(dataclasses.replace(plan, methods={'heir': heir}), ConfigMaker(plan), tmp_path)
    }
    assert jobs['heir'].config().model.inherit == ['bbox_head']
    own = {job.method: job for job in make_jobs(plan, ConfigMaker(plan), tmp_path)}['mse']
    assert 'inherit' not in own.config().model


def test_fewer_levels_take_the_prompts_of_their_levels(plan_file, det_config, tmp_path):
    tall = det_config('tall', width=16, levels=4)
    plan = dataclasses.replace(load_plan(plan_file), teacher=str(tall))
    method = Method('freekd', 'freekd', prompt='six', set={'freekd.loss.levels': 2})
    prompt = ConfigMaker(plan).entries(method, tmp_path / 'prompt.pth')['freekd']['loss']['prompt']
    assert (prompt['indices'], prompt['levels']) == ((0, 1, 2), 2)
    assert prompt['prompt'] == str(tmp_path / 'prompt.pth')


def test_what_a_head_classifies_has_no_prompt(plan_file, tmp_path):
    plan = load_plan(plan_file)
    maker = ConfigMaker(plan)
    maker.wiring = dataclasses.replace(maker.wiring, head=maker.wiring)
    entries = maker.entries(Method('wavelet', 'wavelet', prompt='short'), tmp_path / 'prompt.pth')
    assert [(name, 'prompt' in entry['loss']) for name, entry in entries.items()] == [
        ('wavelet', True),
        ('wavelet_head', False),
    ]
    entries = maker.entries(Method('both', 'wavelet+freekd', prompt='short'), tmp_path / 'prompt.pth')
    assert [name for name, entry in entries.items() if 'prompt' in entry['loss']] == ['freekd'], 'wavelet asks for none'


def test_another_teacher_makes_other_runs_but_not_another_student(plan_file, tmp_path):
    plan = load_plan(plan_file)

    def hashes(**changes):
        changed = dataclasses.replace(plan, **changes)
        return {job.method: job.key[-1] for job in make_jobs(changed, ConfigMaker(changed), tmp_path)}

    before, after = hashes(), hashes(teacher_seed=1)
    assert before['student'] == after['student']
    assert before['mse'] != after['mse']


def test_options_that_lead_nowhere_are_named(plan_file):
    plan = load_plan(plan_file)
    method = dataclasses.replace(plan.methods['mse'], set={'msa.loss.loss_weight': 1})
    with pytest.raises(ValueError, match=r"set of method 'mse' .* 'mse', but got 'msa'. Did you mean 'mse'"):
        ConfigMaker(plan).entries(method, None)
    with pytest.raises(ValueError, match="a prompt is for entries called 'wavelet"):
        ConfigMaker(plan).entries(plan.methods['mse'], plan_file)


def test_two_benchmarks_do_not_share_a_folder(plan_file, tmp_path):
    code = 'import fcntl, sys; f = open(sys.argv[1], "w"); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); input()'
    command = [sys.executable, '-c', code, str(tmp_path / LOCK)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(BlockingIOError, match='should belong to one run, but is in use'):
            benchmark(str(plan_file), tmp_path)
        other.communicate(b'\n')
    assert [file.name for file in tmp_path.iterdir()] == [LOCK]
