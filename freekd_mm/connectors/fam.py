"""FAM, the frequency attention module of FAM-KD (WACV 2024), as an adapter on the student's features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from freekd_mm.checks import check_choice, check_positive
from freekd_mm.compat.versions import zip_equal
from freekd_mm.frequency import SpectralFilter2d
from freekd_mm.registry import MODELS
from freekd_mm.tensors import Levels, as_levels


def _per_level(what: str, value: Any, num_levels: int, one: str = 'one') -> tuple[Any, ...]:
    """Returns a value per level, from an integer for all or from a sequence; ``one`` names it in the error."""
    values = (value,) * num_levels if isinstance(value, int) else tuple(value)
    if len(values) != num_levels:
        raise ValueError(f'{what} should be {one} for all or a list of {num_levels}, one per level, but got {value!r}')
    return values


class FAM(nn.Module):
    r"""Frequency attention of one level, :math:`\gamma_1 F^{-1}(M \cdot K \cdot F(x)) + \gamma_2 W x`.

    The global branch filters the whole map by a learnable K and a high-pass M in the Fourier domain, the
    local branch is a 1x1 convolution. Both gammas are learnable and start at 0.5.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        post: ``'none'``, or ``'bn_relu'`` for the batch norm and ReLU that the released code puts after FAM.
            The levels of an FPN are signed; a ReLU there cannot give the teacher's negative values.
        **spectral: Options of :class:`freekd_mm.frequency.SpectralFilter2d`: how K is stored, the cut of M.
    """

    def __init__(self, in_channels: int, out_channels: int, *, post: str = 'none', **spectral: Any) -> None:
        super().__init__()
        check_choice('post', post, ('none', 'bn_relu'))
        self.spectral = SpectralFilter2d(in_channels, out_channels, **spectral)
        self.local = nn.Conv2d(in_channels, out_channels, 1)
        # Of one element, because FSDP cannot shard scalars.
        self.gamma_1 = nn.Parameter(torch.tensor([0.5]))
        self.gamma_2 = nn.Parameter(torch.tensor([0.5]))
        self.post = nn.Sequential(nn.BatchNorm2d(out_channels), nn.ReLU()) if post == 'bn_relu' else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Returns (N, C_out, H, W) for x (N, C_in, H, W) of any size (``'dense'``: of its own)."""
        y: Tensor = self.post(self.gamma_1 * self.spectral(x) + self.gamma_2 * self.local(x))
        return y


@MODELS.register_module()
class FAMConnector(nn.Module):
    """Adapts the student's levels by one :class:`FAM` each, to be compared with the teacher's.

    It belongs to the distillation, not to the student: the exported student does not contain it. The paper
    compares its output with the teacher's features by the mean squared difference
    (:class:`freekd_mm.losses.FeatureMSELoss`) and warms the weight of that loss up.

    Fits mmrazor's connectors: ``forward`` takes what a recorder recorded. The runtime reads ``multi_level`` (it takes
    all levels in one call) and ``option_bases`` (where ``**fam`` goes).

    Args:
        in_channels: Channels of the student's levels, one integer for all or one per level.
        out_channels: Channels of the teacher's levels, in the same form.
        num_levels: Number of levels; None takes the length of the channels, or 1.
        size: (H, W) of the features for all levels, or one pair per level, if ``mode`` is ``'dense'``.
        **fam: Other options of :class:`FAM`.
    """

    multi_level = True
    option_bases = (FAM, SpectralFilter2d)

    def __init__(
        self,
        in_channels: int | Sequence[int],
        out_channels: int | Sequence[int],
        num_levels: int | None = None,
        size: tuple[int, int] | Sequence[tuple[int, int]] | None = None,
        **fam: Any,
    ) -> None:
        super().__init__()
        if num_levels is None:
            num_levels = next((len(each) for each in (in_channels, out_channels) if not isinstance(each, int)), 1)
        check_positive('num_levels', num_levels, integer=True)
        self.num_levels = num_levels
        self.in_channels = _per_level('in_channels', in_channels, num_levels)
        out_channels = _per_level('out_channels', out_channels, num_levels)
        is_same = not isinstance(size, Sequence) or all(isinstance(item, int) for item in size)
        sizes = _per_level('size', [size] * num_levels if is_same else size, num_levels, '(H, W)')
        self.levels = nn.ModuleList(
            FAM(*channels, size=own, **fam) for *channels, own in zip_equal(self.in_channels, out_channels, sizes)
        )

    def forward(self, features: Levels) -> Tensor | tuple[Tensor, ...]:
        """Returns the adapted features: a tensor for a tensor (N, C, H, W), else a tuple of all levels."""
        levels, name = as_levels(features), type(self).__name__
        if len(levels) != self.num_levels:
            raise ValueError(f'{name}: features should have {self.num_levels} levels, but got {len(levels)}')
        for index, (level, expected) in enumerate(zip_equal(levels, self.in_channels)):
            if level.ndim != 4 or level.shape[1] != expected:
                got = tuple(level.shape)
                raise ValueError(f'{name}: level {index} should be of shape (N, {expected}, H, W), but got {got}')
        outputs = tuple(fam(level) for fam, level in zip_equal(self.levels, self.fuse(levels)))
        return outputs[0] if isinstance(features, Tensor) else outputs

    def fuse(self, levels: tuple[Tensor, ...]) -> Sequence[Tensor]:
        """Returns what goes through FAM: here the levels themselves."""
        return levels
