"""The knowledge review: its attention against unfolded neighbourhoods, its order against a recursion."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch_versions import HALF, newer_torch

from freekd_mm.compat.versions import zip_equal
from freekd_mm.connectors import FAMReviewConnector, LocalCrossAttention
from freekd_mm.losses import FeatureMSELoss
from freekd_mm.registry import MODELS


def naive_attention(attention, x, guide):
    """Cross attention over unfolded 3x3 neighbourhoods, pixel by pixel."""
    batch, channels, height, width = x.shape
    heads = attention.num_heads
    depth = channels // heads

    def unfold(features):
        return F.unfold(features, 3, padding=1).view(batch, channels, 9, height, width)

    query, keys, values = attention.query(guide), unfold(attention.key(x)), unfold(attention.value(x))
    output = torch.zeros(batch, channels, height, width, dtype=x.dtype)
    for row in range(height):
        for column in range(width):
            for head in range(heads):
                part = slice(head * depth, (head + 1) * depth)
                scores = []
                for j in range(9):
                    key = keys[:, :, j, row, column].clone()
                    key[:, : channels // 2] += attention.rows[:, j // 3]
                    key[:, channels // 2 :] += attention.columns[:, j % 3]
                    scores.append((query[:, part, row, column] * key[:, part]).sum(1) / depth**0.5)
                weights = torch.stack(scores, 1).softmax(1)
                output[:, part, row, column] = (weights[:, None] * values[:, part, :, row, column]).sum(2)
    return output


@pytest.mark.parametrize(('channels', 'heads'), [(4, 2), (6, 1), (6, 6), (5, 1)])
@pytest.mark.parametrize('size', [(4, 3), (1, 1), (2, 5)])
def test_attention_equals_the_formula(channels, heads, size):
    attention = LocalCrossAttention(channels, heads).double()
    torch.nn.init.normal_(attention.rows)
    torch.nn.init.normal_(attention.columns)
    x, guide = (torch.randn(2, channels, *size, dtype=torch.float64) for _ in range(2))
    torch.testing.assert_close(attention(x, guide), naive_attention(attention, x, guide))


def test_one_head_a_channel_is_the_released_code():
    """There the product of query and key is never summed over the channels."""
    attention = LocalCrossAttention(4, 4).double()
    x, guide = (torch.randn(1, 4, 3, 4, dtype=torch.float64) for _ in range(2))
    windows = [
        F.pad(convolution(x), (1, 1, 1, 1)).unfold(2, 3, 1).unfold(3, 3, 1)
        for convolution in (attention.key, attention.value)
    ]
    keys, values = (window.clone() for window in windows)
    keys[:, :2] += attention.rows[:, None, None, :, None]
    keys[:, 2:] += attention.columns[:, None, None, None, :]
    weights = (attention.query(guide)[..., None] * keys.flatten(-2)).softmax(-1)
    torch.testing.assert_close(attention(x, guide), (weights * values.flatten(-2)).sum(-1))


def test_attention_gradient():
    attention = LocalCrossAttention(4, 2).double()
    x, guide = (torch.randn(1, 4, 3, 2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    parameters = tuple(attention.parameters())
    assert torch.autograd.gradcheck(lambda x, guide, *_: attention(x, guide), (x, guide, *parameters))


@pytest.mark.filterwarnings('ignore:TypedStorage')
def test_attention_keeps_no_nine_copies():
    """What autograd keeps, counted once a storage: projections and scores, not unfolded features."""
    channels, size = 64, 24
    attention = LocalCrossAttention(channels, 4)
    x, guide = (torch.randn(1, channels, size, size) for _ in range(2))
    kept = {}

    def pack(tensor):
        kept[tensor.storage().data_ptr()] = tensor.storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = attention(x, guide)
    output.sum().backward()
    assert sum(kept.values()) < 7 * x.storage().nbytes()


def naive_review(connector, levels):
    """The review as a recursion from the deepest level."""
    outputs, deeper = [], None
    for index in reversed(range(len(levels))):
        fused = levels[index]
        if deeper is not None:
            fusion = connector.fusions[index]
            guide = F.interpolate(fusion.project(deeper), fused.shape[2:], mode='nearest')
            fused = naive_attention(fusion.attention, fused, guide)
        outputs.append(connector.levels[index](fused))
        deeper = fused
    return tuple(reversed(outputs))


@pytest.mark.parametrize('num_heads', [2, None])
def test_review_equals_the_recursion(num_heads):
    connector = FAMReviewConnector([2, 4, 4], [3, 5, 6], num_heads=num_heads, rank=2).double()
    sizes = ((5, 6), (3, 3), (2, 1))
    levels = [torch.randn(2, c, *size, dtype=torch.float64) for c, size in zip_equal((2, 4, 4), sizes)]
    outputs = connector(levels)
    assert [tuple(output.shape[1:]) for output in outputs] == [(3, 5, 6), (5, 3, 3), (6, 2, 1)]
    torch.testing.assert_close(outputs, naive_review(connector, levels))


def released_review(connector, levels):
    """The released code's adapters, written from its formula: whole complex spectra, unfolded windows, batch norms."""

    def norm_relu(norm, x):
        mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)
        x = (x - mean) / (var + norm.eps).sqrt()
        return (x * norm.weight[:, None, None] + norm.bias[:, None, None]).relu()

    def fam(module, x):
        weight = module.spectral.weight
        spectrum = torch.fft.fft2(x, norm='ortho')
        spectrum = torch.einsum('bixy,oixy->boxy', spectrum, torch.complex(weight[..., 0], weight[..., 1]))
        spectrum = torch.fft.fftshift(spectrum, (2, 3))
        (cy, cx) = (size // 2 for size in x.shape[2:])
        keep = torch.ones_like(spectrum.real)
        keep[:, :, cy - int(0.1 * cy) : cy + int(0.1 * cy), cx - int(0.1 * cx) : cx + int(0.1 * cx)] = 0
        spectrum = torch.fft.ifftshift(spectrum * keep, (2, 3))
        y = module.gamma_1 * torch.fft.ifft2(spectrum, norm='ortho').real + module.gamma_2 * module.local(x)
        return norm_relu(module.post[0], y)

    def attend(attention, x, guide):
        half = x.shape[1] // 2
        keys, values = (
            convolution(F.pad(x, (1, 1, 1, 1))).unfold(2, 3, 1).unfold(3, 3, 1)
            for convolution in (attention.key, attention.value)
        )
        rows, columns = attention.rows[:, None, None, :, None], attention.columns[:, None, None, None, :]
        keys = torch.cat((keys[:, :half] + rows, keys[:, half:] + columns), 1)
        weights = (attention.query(guide)[..., None] * keys.flatten(-2)).softmax(-1)
        return (weights * values.flatten(-2)).sum(-1)

    outputs, deeper = [], None
    for index in reversed(range(len(levels))):
        x = levels[index]
        if deeper is not None:
            fusion = connector.fusions[index]
            if x.shape[1] != deeper.shape[1]:
                deeper = norm_relu(fusion.project[1], fusion.project[0](deeper))
            x = attend(fusion.attention, x, F.interpolate(deeper, x.shape[2:], mode='nearest'))
        outputs.append(fam(connector.levels[index], x))
        deeper = x
    return tuple(reversed(outputs))


def test_variant_code_is_the_released_code():
    sizes = ((20, 24), (10, 12), (5, 6))
    torch.manual_seed(0)
    connector = FAMReviewConnector([4, 6, 6], [5, 6, 8], mode='dense', size=sizes, variant='code').double()
    shapes = [(2, c, *size) for c, size in zip_equal((4, 6, 6), sizes)]
    levels = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    inputs = [*levels, *connector.parameters()]
    ours, theirs = connector(levels), released_review(connector, levels)
    for own, other in zip_equal(ours, theirs):
        torch.testing.assert_close(own, other, rtol=1e-9, atol=1e-10)
    upstream = [torch.randn_like(level) for level in ours]
    gradients = [torch.autograd.grad(out, inputs, upstream) for out in (ours, theirs)]
    for own, other in zip_equal(*gradients):
        torch.testing.assert_close(own, other, rtol=1e-7, atol=1e-9)


def test_variant_code_begins_as_the_released_code():
    torch.manual_seed(0)
    fusion = FAMReviewConnector([256, 512], 16, variant='code', rank=2).fusions[0]
    assert fusion.attention.rows.std().item() == pytest.approx(1, abs=0.1)
    assert fusion.attention.key.weight.std().item() == pytest.approx((2 / 256) ** 0.5, rel=0.05)
    assert fusion.project[0].bias is None
    assert fusion.attention.num_heads == 256


def test_deeper_levels_reach_finer_ones_only():
    connector = FAMReviewConnector(4, 4, num_levels=3, rank=2)
    levels = [torch.randn(1, 4, size, size) for size in (8, 4, 2)]
    before = connector(levels)
    for changed in range(3):
        other = list(levels)
        other[changed] = torch.randn_like(levels[changed])
        after = connector(other)
        same = [torch.equal(old, new) for old, new in zip_equal(before, after)]
        assert same == [index > changed for index in range(3)]


def test_any_size_in_one_training():
    connector = FAMReviewConnector(4, 6, num_levels=3, rank=2)
    optimizer = torch.optim.SGD(connector.parameters(), lr=0.01)
    for height, width in ((16, 24), (9, 7), (3, 2)):
        sizes = [(-(-height // 2**level), -(-width // 2**level)) for level in range(3)]
        outputs = connector([torch.randn(2, 4, *size) for size in sizes])
        assert [tuple(output.shape) for output in outputs] == [(2, 6, *size) for size in sizes]
        optimizer.zero_grad()
        FeatureMSELoss()(outputs, [torch.randn_like(output) for output in outputs]).backward()
        assert all(parameter.grad is not None for parameter in connector.parameters())
        optimizer.step()


def test_small_enough():
    connector = FAMReviewConnector(256, 256, num_levels=5)
    assert sum(parameter.numel() for parameter in connector.parameters()) < 5 * 2_000_000
    assert not any(tensor.is_complex() for tensor in connector.state_dict().values())


@pytest.mark.parametrize('batch', [0, 1])
def test_small_batches(batch):
    connector = FAMReviewConnector(4, 4, num_levels=2, rank=2)
    levels = [torch.randn(batch, 4, size, size, requires_grad=True) for size in (4, 1)]
    FeatureMSELoss()(connector(levels), [torch.randn(batch, 4, size, size) for size in (4, 1)]).backward()
    assert all(level.grad is not None for level in levels)
    assert all(parameter.grad is not None for parameter in connector.parameters())


@pytest.mark.parametrize('dtype', HALF)
def test_autocast(dtype):
    torch.manual_seed(0)
    connector = FAMReviewConnector(8, 8, num_levels=2, rank=4)
    levels = [torch.randn(1, 8, size, size) for size in (6, 3)]
    expected = connector(levels)
    with torch.autocast('cpu', dtype=dtype):
        outputs = connector([level.to(dtype) for level in levels])
    FeatureMSELoss()(outputs, [torch.zeros_like(output) for output in outputs]).backward()
    torch.testing.assert_close([output.float() for output in outputs], list(expected), atol=0.05, rtol=0.05)
    assert all(torch.isfinite(parameter.grad).all() for parameter in connector.parameters())


@newer_torch('autocast to float16 on the CPU')
def test_scores_do_not_overflow_in_half_precision():
    attention = LocalCrossAttention(64, 1)
    for convolution in (attention.query, attention.key):
        torch.nn.init.constant_(convolution.weight, 1 / 8)
    x = torch.full((1, 64, 3, 3), 200.0)
    with torch.autocast('cpu', dtype=torch.float16):
        assert torch.isfinite(attention(x, x)).all()


def test_one_level_is_plain_fam():
    connector = FAMReviewConnector(4, 4, rank=2)
    x = torch.randn(1, 4, 5, 5)
    assert isinstance(connector(x), torch.Tensor)
    assert torch.equal(connector(x), connector.levels[0](x))


def test_default_heads_fit_any_channels():
    connector = FAMReviewConnector([18, 9, 8, 7], 4, rank=2)
    assert [fusion.attention.num_heads for fusion in connector.fusions] == [2, 1, 4]


def test_state_dict_and_deepcopy():
    connector = FAMReviewConnector(4, 4, num_levels=2, rank=2)
    levels = [torch.randn(1, 4, 6, 6), torch.randn(1, 4, 3, 3)]
    other = FAMReviewConnector(4, 4, num_levels=2, rank=2)
    other.load_state_dict(connector.state_dict())
    for twin in (deepcopy(connector), other):
        torch.testing.assert_close(twin(levels), connector(levels))


def test_channels_last():
    connector = FAMReviewConnector(4, 4, num_levels=2, rank=2)
    levels = [torch.randn(2, 4, 6, 5), torch.randn(2, 4, 3, 3)]
    last = [level.to(memory_format=torch.channels_last) for level in levels]
    torch.testing.assert_close(connector(last), connector(levels))


@pytest.mark.parametrize(
    ('arguments', 'options', 'error', 'message'),
    [
        ((6, 6), {'num_levels': 2, 'num_heads': 4}, ValueError, 'num_heads should divide the channels 6, but got 4'),
        ((4, 4), {'num_levels': 2, 'num_heads': 'channels'}, TypeError, 'num_heads should be an integer'),
        ((4, 4), {'num_levels': 2, 'num_heads': 0}, ValueError, 'num_heads should be greater than 0'),
        ((4, 4), {'variant': 'cod'}, ValueError, "variant should be one of 'ours', 'code'.*Did you mean 'code'"),
        ((4, 4), {'rnk': 2}, TypeError, "unexpected keyword argument 'rnk'"),
    ],
)
def test_wrong_options(arguments, options, error, message):
    with pytest.raises(error, match=message):
        FAMReviewConnector(*arguments, **options)


def test_wrong_features():
    with pytest.raises(ValueError, match='FAMReviewConnector: features should have 2 levels, but got 3'):
        FAMReviewConnector(4, 4, num_levels=2)([torch.zeros(1, 4, 2, 2)] * 3)


def test_registered():
    cfg = {'type': 'freekd_mm.FAMReviewConnector', 'in_channels': [4, 8], 'out_channels': 8, 'rank': 2}
    assert MODELS.build(cfg).num_levels == 2
