"""The quick form of every speed benchmark: what it hands back, and what is exact in it. No timings."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch

from freekd_mm.compat.versions import remove_prefix
from speed.__main__ import PARTS, main
from speed.pair import L2, STUDENT, TEACHER, batch_of, build, by_mmrazor, config_of, distilled
from speed.tables import Report, targets_table, write_records
from speed.timing import Options, Spread, Turns, take_turns

CPU = torch.device('cpu')


@pytest.fixture(scope='module')
def report_of(tmp_path_factory):
    """Runs a part once and returns its report and what it wrote."""
    for package in ('pytorch_wavelets', 'ptwt'):
        pytest.importorskip(package)
    done = {}

    def run(part):
        if part not in done:
            file = tmp_path_factory.mktemp('records') / f'{part}.jsonl'
            (report,) = main([part, '--quick', '--rounds', '1', '--device', 'cpu', '--jsonl', str(file)])
            done[part] = report, [json.loads(line) for line in file.read_text().splitlines()]
        return done[part]

    return run


@pytest.mark.parametrize('part', PARTS)
def test_tables_and_lines_are_whole(report_of, part):
    report, (machine, *lines) = report_of(part)
    assert machine['quick'] is True
    assert machine['device'] == 'cpu'
    assert report.part == part
    assert lines == json.loads(json.dumps(report.records))
    assert lines
    for line in lines:
        assert line['part'] == part
        for key, value in line.items():
            if key.startswith(('times_', 'milliseconds')) and value is not None:
                median, low, high = value
                assert 0 < low <= median <= high
    tables = [block.splitlines() for block in report.blocks if block.startswith('|')]
    assert tables
    for table in tables:
        assert len(table) > 2
        assert len({line.count('|') for line in table}) == 1


def test_code_mode_is_the_naive_formula(report_of):
    report, _ = report_of('loss')
    differences = [record['difference'] for record in report.records if 'difference' in record]
    assert len(differences) == 2
    assert max(differences) < 1e-5


def test_ours_and_mmrazor_train_the_same_student():
    """The same losses and gradients: only then are their times compared."""
    student, teacher = config_of(STUDENT, quick=True), config_of(TEACHER, quick=True)
    batch = batch_of(2, (64, 96))
    found = []
    for make in (distilled, by_mmrazor):
        model = make(student, teacher, L2)
        data = model.data_preprocessor(copy.deepcopy(batch), True)
        total, logs = model.parse_losses(model.loss(data['inputs'], data['data_samples']))
        total.backward()
        gradients = {
            remove_prefix(name, 'architecture.'): parameter.grad
            for name, parameter in model.named_parameters()
            if parameter.grad is not None
        }
        distances = [value for key, value in logs.items() if key.startswith('distill.loss_')]
        found.append((total, sum(distances), gradients))
    (ours, our_distance, our_gradients), (theirs, their_distance, their_gradients) = found
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(our_distance, their_distance)
    assert our_distance > 0
    assert our_gradients.keys() == their_gradients.keys()
    for name, gradient in our_gradients.items():
        torch.testing.assert_close(gradient, their_gradients[name], rtol=1e-4, atol=1e-6)


def test_teacher_of_the_benchmark_is_another_model():
    student, teacher = config_of(STUDENT, quick=True), config_of(TEACHER, quick=True)
    model = distilled(student, teacher, L2)
    plain = build(student)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in plain.state_dict().items())
    expected = build(teacher, 1).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.teacher.state_dict().items())


def test_only_what_is_trained_is_communicated(report_of):
    report, _ = report_of('parallel')
    plain, distilled_one = report.records
    gate = 16 * 64 + 64 + 64 + 1  # the MLP of the relation, for the 16 channels of the thin neck
    assert distilled_one['trained'] == plain['trained'] + gate
    for record in report.records:
        assert record['bytes'] == sum(record['buckets']) == 4 * record['trained']
    assert distilled_one['teacher_parameters'] > 0
    assert distilled_one['teacher_in_buckets'] == 0


def test_dense_filter_stores_every_frequency(report_of):
    report, _ = report_of('fam')
    stored = {record['what']: record['parameters'] for record in report.records}
    local = 8 * 8 + 8 + 2  # 1x1 convolution and the two gammas
    assert stored['dense, 4x6'] == 2 * 8 * 8 * 4 * 6 + local
    assert stored['default (lowrank), 4x6'] == stored['default (lowrank), 7x11']
    assert 'dense, 7x11' not in stored


def test_memory_grows_with_the_batch(report_of):
    report, _ = report_of('growth')
    memory = {record['what']: record['memory_first'] for record in report.records}
    assert memory['batch 1, plain MSE'] == 1
    assert memory['batch 2, plain MSE'] == pytest.approx(2, rel=0.05)


def test_ratios_are_taken_round_by_round():
    turns = Turns({'a': [2.0, 30.0, 8.0], 'b': [1.0, 10.0, 2.0], 'c': [1.0, 5.0, 2.0]})
    assert turns.ratio('a', 'b') == Spread(3.0, 2.0, 4.0)
    assert turns.ratio('a', 'b', 'c') == Spread(2.0, 1.0, 2.0)
    assert str(turns.milliseconds('b')) == '2000 (1000 to 10000)'


def test_jobs_take_turns_and_the_first_round_does_not_count():
    calls = []
    jobs = {name: lambda name=name: calls.append(name) for name in 'ab'}
    turns = take_turns(jobs, Options(CPU, rounds=2))
    assert calls == ['a', 'b'] * 3
    assert [len(values) for values in turns.seconds.values()] == [2, 2]


def test_targets_say_what_was_missed(tmp_path):
    report = Report('loss', 'A title')
    report.target('fast', Spread(7.0, 5.0, 8.0), at_least=6)
    report.target('small', Spread.exactly(0.6), at_most=0.5)
    fast, small = targets_table(report.targets).splitlines()[2:]
    assert fast == '| fast | at least 6 | 7.00 (5.00 to 8.00) | yes |'
    assert small == '| small | at most 0.5 | 0.60 | **no** |'
    report.record('a', times=Spread(1.0, 0.5, math.pi))
    write_records(tmp_path / 'a.jsonl', [report], Options(CPU))
    assert json.loads((tmp_path / 'a.jsonl').read_text().splitlines()[1])['times'] == [1.0, 0.5, 3.14159]


def test_unknown_part_is_named(capsys):
    with pytest.raises(SystemExit):
        main(['lose'])
    error = capsys.readouterr().err
    assert 'part should be one of launches, layer, loss, step, fam, growth, parallel, startup, but got lose' in error
