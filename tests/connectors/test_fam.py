"""FAMConnector against the paper's formula with complex numbers and loops."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import torch
from torch.nn.parallel import DistributedDataParallel
from torch_versions import HALF

from freekd_mm.connectors import FAM, FAMConnector
from freekd_mm.losses import FeatureMSELoss
from freekd_mm.registry import MODELS


def naive_fam(x, kernel, weight, bias, gammas, cut, region):
    """FAM from the paper's formula, image by image and channel by channel.

    Args:
        x: (N, C_in, H, W).
        kernel: Complex K (C_out, C_in, H, W), zero frequency first.
        weight: 1x1 convolution (C_out, C_in).
        bias: (C_out,).
        gammas: The two factors.
        cut: Part of the half-width that the high-pass removes.
        region: 'symmetric' or 'code'.
    """
    height, width = x.shape[2:]
    centre = height // 2, width // 2
    keep = np.ones((height, width))
    if region == 'code':
        reach = int(cut * centre[0]), int(cut * centre[1])
        keep[centre[0] - reach[0] : centre[0] + reach[0], centre[1] - reach[1] : centre[1] + reach[1]] = 0
    else:
        for row in range(height):
            for column in range(width):
                low = abs(row - centre[0]) < cut * height / 2 and abs(column - centre[1]) < cut * width / 2
                keep[row, column] = 0 if low else 1
    output = np.zeros((x.shape[0], kernel.shape[0], height, width))
    for n in range(x.shape[0]):
        for out in range(kernel.shape[0]):
            spectrum = np.zeros((height, width), dtype=complex)
            local = np.full((height, width), bias[out])
            for channel in range(x.shape[1]):
                spectrum += kernel[out, channel] * np.fft.fft2(x[n, channel])
                local += weight[out, channel] * x[n, channel]
            spectrum = np.fft.ifftshift(np.fft.fftshift(spectrum) * keep)
            output[n, out] = gammas[0] * np.fft.ifft2(spectrum).real + gammas[1] * local
    return output


def parts(fam):
    """The arrays of naive_fam that do not depend on the mode."""
    return (
        fam.local.weight.detach().numpy()[:, :, 0, 0],
        fam.local.bias.detach().numpy(),
        (fam.gamma_1.item(), fam.gamma_2.item()),
    )


@pytest.mark.parametrize('region', ['symmetric', 'code'])
@pytest.mark.parametrize('cut', [0.1, 0.5])
@pytest.mark.parametrize('size', [(8, 10), (7, 9), (22, 24)])
def test_dense_equals_the_paper(region, cut, size):
    connector = FAMConnector(3, 4, mode='dense', size=size, high_pass=cut, region=region).double()
    fam = connector.levels[0]
    with torch.no_grad():
        fam.spectral.weight.normal_()
        fam.gamma_1.fill_(0.7)
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    kernel = torch.view_as_complex(fam.spectral.weight.detach()).numpy()
    expected = naive_fam(x.numpy(), kernel, *parts(fam), cut, region)
    np.testing.assert_allclose(connector(x).detach().numpy(), expected, atol=1e-10)


@pytest.mark.parametrize('mode', ['lowrank', 'depthwise'])
@pytest.mark.parametrize('size', [(8, 10), (7, 9)])
def test_other_modes_are_dense_with_a_structured_filter(mode, size):
    fam = FAM(3, 4, mode=mode, rank=2, grid_size=(5, 4), high_pass=0.5).double()
    with torch.no_grad():
        fam.spectral.spectrum.normal_()
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    half = fam.spectral.transfer(*size, x).detach()
    # The missing half of a real filter's spectrum: K(-f) = conj K(f).
    columns = torch.arange(size[1] // 2 + 1, size[1])
    mirrored = half[:, -torch.arange(size[0])][:, :, size[1] - columns].conj()
    full = torch.cat((half, mirrored), -1)
    expand = fam.spectral.expand.detach().to(full.dtype)
    if mode == 'lowrank':
        kernel = torch.einsum('or,rhw,ri->oihw', expand, full, fam.spectral.reduce.detach().to(full.dtype))
    else:
        kernel = torch.einsum('oi,ihw->oihw', expand, full)
    expected = naive_fam(x.numpy(), kernel.numpy(), *parts(fam), 0.5, 'symmetric')
    np.testing.assert_allclose(fam(x).detach().numpy(), expected, atol=1e-10)


def test_starts_with_both_branches_at_one_half():
    fam = FAM(4, 4)
    assert isinstance(fam.gamma_1, torch.nn.Parameter)
    assert isinstance(fam.gamma_2, torch.nn.Parameter)
    assert fam.gamma_1.item() == fam.gamma_2.item() == 0.5


def test_default_mode_is_small_and_real():
    connector = FAMConnector(256, 256)
    assert sum(parameter.numel() for parameter in connector.parameters()) < 2_000_000
    assert not any(tensor.is_complex() for tensor in connector.state_dict().values())


@pytest.mark.parametrize('mode', ['lowrank', 'depthwise'])
def test_any_size_in_one_training(mode):
    """Images of other sizes, one-pixel levels included, train the same parameters."""
    torch.manual_seed(0)
    connector = FAMConnector(4, 6, mode=mode, rank=4)
    optimizer = torch.optim.SGD(connector.parameters(), lr=0.01)
    shapes = {name: parameter.shape for name, parameter in connector.named_parameters()}
    for size in ((9, 16), (16, 9), (5, 5), (1, 1), (40, 3)):
        output = connector(torch.randn(2, 4, *size))
        assert output.shape == (2, 6, *size)
        optimizer.zero_grad()
        FeatureMSELoss()(output, torch.randn_like(output)).backward()
        assert all(parameter.grad is not None for parameter in connector.parameters())
        optimizer.step()
    assert {name: parameter.shape for name, parameter in connector.named_parameters()} == shapes
    assert all(torch.isfinite(parameter).all() for parameter in connector.parameters())


def test_learns_the_teacher():
    """A shifted edge filter of the student's map is within reach of the global branch."""
    torch.manual_seed(0)
    student = torch.randn(4, 3, 16, 16)
    teacher = student.roll(3, -1) - student
    connector = FAMConnector(3, 3, rank=3, high_pass=None)
    optimizer = torch.optim.Adam(connector.parameters(), lr=0.02)
    loss = FeatureMSELoss()
    values = []
    for _ in range(150):
        value = loss(connector(student), teacher)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.2 * values[0]
    # The best that a 1x1 convolution can do is -student, with an error of var(student) = 1.
    assert values[-1] < 0.7


def test_tensor_and_levels():
    connector = FAMConnector([3, 4], [5, 6], rank=2)
    levels = connector([torch.randn(2, 3, 8, 8), torch.randn(2, 4, 4, 4)])
    assert isinstance(levels, tuple)
    assert [tuple(level.shape) for level in levels] == [(2, 5, 8, 8), (2, 6, 4, 4)]
    assert isinstance(FAMConnector(3, 5, rank=2)(torch.randn(1, 3, 4, 4)), torch.Tensor)
    assert isinstance(FAMConnector(3, 5, num_levels=1, rank=2)((torch.randn(1, 3, 4, 4),)), tuple)
    assert FAMConnector(3, [5, 6, 7], rank=2).in_channels == (3, 3, 3)


def test_levels_have_their_own_filters():
    connector = FAMConnector(2, 2, num_levels=3, rank=2)
    levels = [torch.randn(1, 2, 6, 6) for _ in range(3)]
    connector(levels)[1].sum().backward()
    assert [fam.gamma_1.grad is None for fam in connector.levels] == [True, False, True]


def test_state_dict_and_deepcopy():
    connector = FAMConnector(3, 3, num_levels=2, rank=2)
    levels = [torch.randn(1, 3, 6, 6), torch.randn(1, 3, 3, 3)]
    other = FAMConnector(3, 3, num_levels=2, rank=2)
    other.load_state_dict(connector.state_dict())
    for twin in (deepcopy(connector), other):
        torch.testing.assert_close(twin(levels), connector(levels))


@pytest.mark.parametrize('dtype', HALF)
def test_autocast(dtype):
    torch.manual_seed(0)
    connector = FAMConnector(8, 8, rank=4)
    x = torch.randn(2, 8, 12, 9)
    expected = connector(x)
    with torch.autocast('cpu', dtype=dtype):
        output = connector(x.to(dtype))
    loss = FeatureMSELoss()(output, torch.zeros_like(output))
    loss.backward()
    torch.testing.assert_close(output.float(), expected, atol=0.05, rtol=0.05)
    assert all(torch.isfinite(parameter.grad).all() for parameter in connector.parameters())


@pytest.mark.parametrize('batch', [0, 1])
def test_small_batches(batch):
    connector = FAMConnector(3, 4, rank=2)
    x = torch.randn(batch, 3, 5, 6, requires_grad=True)
    FeatureMSELoss()(connector(x), torch.randn(batch, 4, 5, 6)).backward()
    assert x.grad is not None
    assert all(parameter.grad is not None for parameter in connector.parameters())


def test_memory_formats():
    connector = FAMConnector(4, 4, rank=2)
    x = torch.randn(2, 4, 6, 5)
    expected = connector(x)
    torch.testing.assert_close(connector(x.to(memory_format=torch.channels_last)), expected)
    torch.testing.assert_close(connector(x.mT.contiguous().mT), expected)


def test_input_stays():
    x = torch.randn(1, 3, 4, 4)
    before = x.clone()
    FAMConnector(3, 3, rank=2)(x)
    assert torch.equal(x, before)


def test_gradient():
    fam = FAM(2, 2, rank=2, grid_size=(3, 3), high_pass=0.5).double()
    with torch.no_grad():
        fam.spectral.spectrum.normal_()
    x = torch.randn(1, 2, 5, 4, dtype=torch.float64, requires_grad=True)
    parameters = tuple(fam.parameters())
    assert torch.autograd.gradcheck(lambda x, *_: fam(x), (x, *parameters))


def test_behind_the_released_code():
    connector = FAMConnector(3, 4, rank=2, post='bn_relu')
    output = connector(torch.randn(2, 3, 6, 6))
    assert output.min() == 0
    assert output.max() > 0


def test_data_parallel(tmp_path):
    """DDP refuses complex parameters; one process is enough to see."""
    torch.distributed.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    try:
        connector = DistributedDataParallel(FAMConnector(3, 3, num_levels=2, rank=2))
        for _ in range(2):
            levels = connector((torch.randn(1, 3, 6, 6), torch.randn(1, 3, 3, 3)))
            sum(level.square().mean() for level in levels).backward()
    finally:
        torch.distributed.destroy_process_group()
    assert all(parameter.grad.abs().sum() > 0 for parameter in connector.parameters())


@pytest.mark.parametrize(
    ('arguments', 'options', 'message'),
    [
        ((3, 3), {'mode': 'low-rank'}, "mode should be one of .*Did you mean 'lowrank'"),
        ((3, 3), {'mode': 'dense'}, r'size should be \(H, W\)'),
        ((3, 3), {'region': 'paper'}, "region should be one of 'symmetric', 'code', but got 'paper'"),
        ((3, 3), {'post': 'relu'}, "post should be one of 'none', 'bn_relu', but got 'relu'"),
        ((3, 3), {'num_levels': 0}, 'num_levels should be greater than 0'),
        (
            ([3, 4], 3),
            {'num_levels': 3},
            r'in_channels should be one for all or a list of 3, one per level, but got \[3, 4\]',
        ),
        (([3, 4], [3, 4, 5]), {}, 'out_channels should be one for all or a list of 2'),
        ((0, 3), {}, 'in_channels should be greater than 0, but got 0'),
        (
            (3, 3),
            {'num_levels': 2, 'mode': 'dense', 'size': [(4, 4)]},
            r'size should be \(H, W\) for all or a list of 2',
        ),
        ((3, 3), {'mode': 'dense', 'size': ()}, r'size should be .* but got \(\)'),
    ],
)
def test_wrong_options(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        FAMConnector(*arguments, **options)


def test_wrong_features():
    connector = FAMConnector([3, 4], 3, rank=2)
    with pytest.raises(ValueError, match='FAMConnector: features should have 2 levels, but got 1'):
        connector(torch.zeros(1, 3, 4, 4))
    with pytest.raises(ValueError, match=r'level 1 should be of shape \(N, 4, H, W\), but got \(1, 3, 4, 4\)'):
        connector([torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4)])
    with pytest.raises(ValueError, match=r"size \(4, 4\) given to mode 'dense', but got \(4, 5\)"):
        FAMConnector(3, 3, mode='dense', size=(4, 4))(torch.zeros(1, 3, 4, 5))


def test_registered():
    connector = MODELS.build({'type': 'freekd_mm.FAMConnector', 'in_channels': 4, 'out_channels': 8, 'rank': 2})
    assert connector(torch.zeros(1, 4, 3, 3)).shape == (1, 8, 3, 3)
