"""The Triton kernels: against whole bands in Triton's interpreter, and compiled for GPUs that are not there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from loss_checks import within

from freekd_mm.compat.versions import torch_at_least, zip_equal
from freekd_mm.frequency import WaveletBands, WaveletDetail, dwt2d, idwt2d
from freekd_mm.frequency.inputs import band_sizes
from freekd_mm.losses import FreeKDPlusLoss, WaveletLoss
from freekd_mm.losses.bands import distance
from freekd_mm.losses.bands.distance import Level
from freekd_mm.prompts import PromptFile, save_prompt

pytest.importorskip('triton', reason='Triton is not installed: it has no release for this Python or system')
if not torch_at_least(2, 4):
    pytest.skip('the kernels need PyTorch 2.4', allow_module_level=True)

INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'
interpreted = pytest.mark.skipif(not INTERPRETED, reason='runs in a process of its own, with the interpreter')
SIZES = [(13, 21), (16, 8), (9, 10)]
HALF = {torch.bfloat16: dict(rtol=2e-2, atol=2e-2), torch.float16: dict(rtol=2e-3, atol=2e-3)}


def kernels():
    from freekd_mm.losses.bands import kernels

    return kernels


@pytest.mark.skipif(INTERPRETED, reason='starts the process')
def test_in_the_interpreter():
    """Triton looks at the variable when it is imported."""
    command = [sys.executable, '-m', 'pytest', '--noconftest', '-p', 'no:cacheprovider', '-rA', __file__]
    paths = os.pathsep.join(filter(None, (str(Path(__file__).parents[1]), os.environ.get('PYTHONPATH'))))
    variables = {**os.environ, 'TRITON_INTERPRET': '1', 'PYTHONPATH': paths}
    done = subprocess.run(command, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-1000:]
    assert done.stdout.count('PASSED') >= 12, done.stdout[-5000:]


def case(depths, masked, students=torch.float32, teachers=torch.float32, sizes=SIZES):
    generator = torch.Generator().manual_seed(0)
    made, levels = [], []
    for index, (size, depth) in enumerate(zip_equal(sizes, depths)):
        shape = 2, 3 + index, *size
        made.append(torch.randn(shape, generator=generator).to(students))
        teacher = torch.randn(shape, generator=generator).to(teachers)
        masks = [torch.rand(2, 4, *band, generator=generator) for band in band_sizes(size, depth)]
        levels.append(Level(teacher, 1.0, [1.0] * depth, masks if masked else []))
    return made, levels


def listed(x, depth):
    """The bands of x (N, C, 4, h, w) per level; a low band that has a deeper level is 0."""
    found = dwt2d(x.double(), depth)
    low = [torch.zeros_like(detail.vertical) for detail in found.high[:-1]] + [found.low]
    return [torch.stack((each, d.vertical, d.horizontal, d.diagonal), 2) for each, d in zip_equal(low, found.high)]


def back(bands, shape):
    low = bands[-1][:, :, 0]
    return idwt2d(WaveletBands(low, tuple(WaveletDetail(b[:, :, 2], b[:, :, 1], b[:, :, 3]) for b in bands), shape))


@interpreted
@pytest.mark.parametrize('masked', [False, True])
@pytest.mark.parametrize('form', ['contiguous', 'channels last', 'part', 'bf16', 'bf16 teacher', 'fp16'])
@pytest.mark.parametrize('depths', [(3, 2, 1), (1, 1, 0), (3, 1, 2)])
def test_sums_and_gradients_are_those_of_whole_bands(depths, form, masked):
    dtype = {'bf16': torch.bfloat16, 'fp16': torch.float16}.get(form, torch.float32)
    students, levels = case(depths, masked, dtype, torch.bfloat16 if 'bf16' in form else dtype)
    if form == 'channels last':
        students = [student.to(memory_format=torch.channels_last) for student in students]
    if form == 'part':
        wide = [torch.nn.functional.pad(student, (3, 1, 2, 5)) for student in students]
        students = [x[:, :, 2:-5, 3:-1] for x in wide]
    most, channels = max(depths), max(student.shape[1] for student in students)
    factors = torch.randn(2, len(levels), channels, most, 4, generator=torch.Generator().manual_seed(1))
    sums = kernels().sums_of(students, levels, most)
    gradients = kernels().gradients_of(students, levels, factors)
    for index, (student, level) in enumerate(zip_equal(students, levels)):
        teacher, depth, masks = level.teacher, level.depth, level.masks
        count, mixed = student.shape[1], []
        assert not sums[index, :, depth:].any()
        assert not sums[index, count:].any()
        if not depth:
            assert not gradients[index].any()
            continue
        for number, (b, a) in enumerate(zip_equal(listed(student, depth), listed(teacher, depth))):
            b, a = (within(x, number + 1, student.shape[2:]) for x in (b, a))
            weight = masks[number][:, None].double() if masks else 1.0
            wanted = torch.stack([(weight * x * y).sum((0, 3, 4)) for x, y in ((b, b), (b, a), (a, a))], 2)
            torch.testing.assert_close(sums[index, :count, number], wanted.float(), rtol=1e-4, atol=1e-4)
            own, other = factors[:, index, :count, number, :, None, None].double()
            mixed.append(weight * (own * b - other * a))
        assert gradients[index].dtype == dtype
        wanted = back(mixed, tuple(student.shape[2:]))
        torch.testing.assert_close(gradients[index].double(), wanted, **HALF.get(dtype, dict(rtol=1e-4, atol=1e-5)))


@interpreted
@pytest.mark.parametrize('kind', [WaveletLoss, FreeKDPlusLoss])
@pytest.mark.parametrize('masked', [False, True])
def test_a_loss_is_the_same_with_and_without_them(kind, masked, tmp_path, monkeypatch):
    file = None
    if masked:
        tokens = {f'neck[{level}]': torch.randn(4, 2, 4) for level in range(2)}
        file = str(save_prompt(PromptFile(tokens, num_tokens=2), tmp_path / 'prompt.pth'))
    loss, sizes = kind(4, prompt=file), [(24, 17), (9, 10)]
    students = [torch.randn(2, 4, *size, requires_grad=True) for size in sizes]
    teachers = [torch.randn(2, 4, *size) for size in sizes]
    wanted = loss(students, teachers)
    monkeypatch.setattr(distance, '_way', lambda *_: (kernels().sums_of, kernels().gradients_of))
    value = loss(students, teachers)
    torch.testing.assert_close(value, wanted)
    for own, other in zip_equal(torch.autograd.grad(3 * value, students), torch.autograd.grad(3 * wanted, students)):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-7)


@interpreted
def test_they_are_compared_once_and_give_way(monkeypatch):
    logged, (students, levels), module = [], case((2, 1, 2), True), kernels()
    monkeypatch.setattr(module, 'say', logged.append)
    plain = distance.sums_of, distance.gradients_of
    monkeypatch.setattr(module, 'COMPARED', {})
    assert [module.serve(students, levels, 2, plain) for _ in range(2)] == [True, True]
    assert logged == []
    monkeypatch.setattr(module, 'COMPARED', {})
    broken = [levels[0]._replace(teacher=torch.full_like(levels[0].teacher, float('nan'))), *levels[1:]]
    assert not module.serve(students, broken, 2, plain)
    assert module.COMPARED == {}, 'values that are not finite say nothing about the kernels'
    for problem, sums in (
        ('their results differ from those of plain PyTorch', lambda *given: 1.01 * plain[0](*given)),
        ('RuntimeError: no memory', lambda *_: (_ for _ in ()).throw(RuntimeError('no\nmemory'))),
    ):
        monkeypatch.setattr(module, 'COMPARED', {})
        assert [module.serve(students, levels, 2, (sums, plain[1])) for _ in range(2)] == [False, False]
        assert logged == [f'The Triton kernels of the wavelet losses are not used: {problem}']
        logged.clear()
    wide = [student.double() for student in students]
    assert not module.serve(wide, levels, 2, plain)
    assert logged == []


@pytest.mark.skipif(INTERPRETED, reason='compiles')
@pytest.mark.parametrize(('capability', 'dtype'), [(75, '*fp16'), (80, '*fp32'), (90, '*bf16')])
def test_compiles_for_gpus_that_are_not_there(capability, dtype):
    """Six kernels take most of a minute's half: they are the ones that run."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    module = kernels()
    for gradient in (False, True):
        table, values, student, teacher, *constants = module.kernel.arg_names
        types = {table: '*i64', values: '*fp32', student: dtype, teacher: '*fp32'}
        source = ASTSource(
            module.kernel,
            {**types, **dict.fromkeys(constants, 'constexpr')},
            dict(zip_equal(constants, (gradient, True, 3))),
        )
        options = dict(num_warps=module.WARPS)
        made = triton.compile(source, target=GPUTarget('cuda', capability, 32), options=options)
        assert len(made.asm['cubin']) > 1000
        assert made.metadata.shared < 48 * 1024


def test_only_a_gpu_gets_them_and_a_variable_switches_them_off(monkeypatch):
    students, levels = case((2, 1, 2), False)
    plain = distance.sums_of, distance.gradients_of
    assert distance._way(students, levels, 2) == plain

    class OnGPU:
        is_cuda = True

    monkeypatch.setattr(kernels(), 'serve', lambda *_: True)
    assert distance._way([OnGPU()], levels, 2) == (kernels().sums_of, kernels().gradients_of)
    monkeypatch.setenv('FREEKD_MM_TRITON', '0')
    assert distance._way([OnGPU()], levels, 2) == plain
