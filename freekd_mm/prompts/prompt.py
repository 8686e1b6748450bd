"""The semantic frequency prompt of FreeKD's first stage (CVPR 2024, arXiv 2311.12079), and one that selects."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from freekd_mm.checks import check_choice, check_positive
from freekd_mm.compat.versions import zip_equal
from freekd_mm.frequency import WaveletBands, WaveletDetail, dwt2d, idwt2d
from freekd_mm.frequency.inputs import usable_levels
from freekd_mm.prompts import masks as poi
from freekd_mm.prompts.masks import Evidence, Grouping
from freekd_mm.tensors import full_precision

Mode = Literal['paper', 'code', 'selective']
#: What the modes are; the grouping can be chosen otherwise. The dissimilarity: see
#: :func:`freekd_mm.prompts.masks.mask_similarity`.
MODES: dict[str, dict[str, Any]] = {
    'paper': dict(grouping='band', evidence='band', dissimilarity='jaccard', weight=1.0),
    'code': dict(grouping='level', evidence='band', dissimilarity='dice', weight=1.0),
    # No dissimilarity: it drives the masks apart, and their sum is flat again.
    'selective': dict(grouping='level', evidence='magnitude', dissimilarity='dice', weight=0.0),
}
#: Deviation of the tokens at the start; with 'magnitude' relative to their mean.
INIT_STD = 0.02
#: The mask of a band that stays whole: the sigmoid of this is 1.
WHOLE = 30.0
#: Added to a variance.
TINY = 1e-12
#: Share of a batch in the running statistics.
MOMENTUM = 0.1


class FrequencyPrompt(nn.Module):
    r"""Learnable tokens that say which positions of each wavelet band matter to the frozen teacher.

    For a band :math:`R` (flattened, C x hw) and its tokens :math:`P` (T x C) the paper's masks are
    :math:`M = \sigma(P R)`, T x hw, and the band is replaced by

    .. math::
        R' = \frac{2}{T} \sum_{i=1}^{T} M_i \cdot R

    The paper has T = 2, where the factor is 1. The tokens start in pairs :math:`(p, -p)`, and a zero if T is
    odd: as :math:`\sigma(x) + \sigma(-x) = 1`, the teacher starts unchanged for every T, and the tokens of a pair
    differ, so that the dissimilarity can drive them apart. A teacher that must stay intact needs
    :math:`\sum_i M_i \approx 1` at every position: each mask looks somewhere, their sum nowhere.

    ``mode='selective'`` makes masks whose sum looks somewhere. The logits :math:`z` come from magnitudes, see
    :func:`freekd_mm.prompts.masks.mask_logits`, and are standardised over the batch, so that each mask has one area
    and one sharpness for any tokens: it can be neither flat nor empty, and only learns where it looks:

    .. math::
        M = \sigma\Big(\tau \frac{z - \langle z \rangle}{\mathrm{std}(z)} + \beta\Big), \quad
        \beta = \ln \frac{a}{1 - a} \sqrt{1 + \pi \tau^2 / 8}, \quad
        R' = \frac{1}{T} \sum_i M_i \cdot R

    With this :math:`\beta` the mean of M is the area a for a normally distributed z. After training the statistics
    are folded into tokens and a bias, see :meth:`folded`: stage 2 needs nothing else.

    Args:
        channels: C of the features.
        mode: ``'paper'``; ``'code'``, as in the released code's prompts; or ``'selective'``, ours.
        num_tokens: T.
        levels: Number of wavelet levels.
        grouping: ``'level'``, one group of tokens for the three orientations of a level (``'code'``,
            ``'selective'``); ``'band'``, one per band (``'paper'``).
        area: In ``'selective'``: the mean of each mask. One number for the high bands, and the low band stays
            whole; or one per group, the low band's first. 1 leaves a band whole. 0.35 by default.
        sharpness: In ``'selective'``: :math:`\tau`, 4 by default.
        min_positions: The transform has only as many levels as leave so many positions in each band. A map that is too
            small for one level passes unchanged. 0 for all levels.
    """

    def __init__(
        self,
        channels: int,
        mode: Mode = 'paper',
        num_tokens: int = 2,
        levels: int = 3,
        grouping: Grouping | None = None,
        area: float | Sequence[float] | None = None,
        sharpness: float | None = None,
        min_positions: int = 16,
    ) -> None:
        super().__init__()
        check_choice('mode of the prompt', mode, MODES)
        for name, value in dict(channels=channels, num_tokens=num_tokens, levels=levels).items():
            check_positive(name, value, integer=True)
        check_positive('min_positions', min_positions, integer=True, zero=True)
        self.channels, self.mode, self.num_tokens, self.levels = channels, mode, num_tokens, levels
        self.min_positions = min_positions
        self.grouping: Grouping = grouping or MODES[mode]['grouping']
        self.evidence: Evidence = MODES[mode]['evidence']
        self.dissimilarity: Any = MODES[mode]['dissimilarity']
        self.sharpness: float = 4.0 if sharpness is None else sharpness
        check_positive('sharpness', self.sharpness)
        if self.evidence == 'band' and (area, sharpness) != (None, None):
            raise ValueError(
                f"area and sharpness should be left out unless mode='selective', but got area={area!r}, "
                f'sharpness={sharpness!r} with mode={mode!r}'
            )
        groups = poi.num_groups(levels, self.grouping)
        area = 0.35 if area is None else area
        self.areas = (1.0, *[area] * (groups - 1)) if isinstance(area, (int, float)) else tuple(area)
        for one in self.areas:
            check_positive('area', one)
        if len(self.areas) != groups or max(self.areas) > 1:
            raise ValueError(
                f'area should be a number up to 1 or {groups} of them, one for each group, but got {area!r}'
            )
        #: (groups, T, C); group 0 is the low band's, the others follow from the finest level on.
        self.mask_token = nn.Parameter(self._start(groups))
        self.mean: Tensor
        self.var: Tensor
        if self.evidence == 'magnitude':
            # Of the logits z of each group, over the last batches; a variance of 0 means that there was none.
            self.register_buffer('mean', torch.zeros(groups, num_tokens))
            self.register_buffer('var', torch.zeros(groups, num_tokens))

    def _start(self, groups: int) -> Tensor:
        count, channels = self.num_tokens, self.channels
        if self.evidence == 'magnitude':
            # The mean of all magnitudes: the local energy of the band.
            return (1 + INIT_STD * torch.randn(groups, count, channels)) / channels
        half = INIT_STD * torch.randn(groups, count // 2, channels)
        return torch.cat((half, -half, torch.zeros(groups, count % 2, channels)), 1)

    def masks(self, x: Tensor, bands: WaveletBands | None = None) -> WaveletBands:
        """Returns the masks of every band of x (N, C, H, W), each (N, T, h, w), at least of one level.

        The bands of x may be given where they are known.
        """
        levels = max(usable_levels(x.shape[2:], self.levels, self.min_positions), 1)
        change = self._standardise if self.evidence == 'magnitude' else None
        return poi.poi_masks(x, self.mask_token, levels, self.grouping, self.evidence, change, bands)

    def _standardise(self, logits: Tensor, group: int) -> Tensor:
        mean, var = self.mean[group], self.var[group]
        if self.training and logits.numel() > self.num_tokens:
            own_var, own_mean = torch.var_mean(logits, (0, 2, 3), unbiased=False)
            # The first batch is taken whole.
            rate = torch.full_like(var, MOMENTUM).masked_fill(var == 0, 1.0)
            var.lerp_(own_var.detach().to(var.dtype), rate)
            mean.lerp_(own_mean.detach().to(var.dtype), rate)
            mean, var = own_mean, own_var
        scale, bias = self._affine(mean, var, self.areas[group])
        return logits * scale[:, None, None] + bias[:, None, None]

    def _affine(self, mean: Tensor, var: Tensor, area: float) -> tuple[Tensor, Tensor]:
        """Returns scale and bias (T,) of logits with these statistics (T,); a band without any stays whole."""
        if area == 1:
            return torch.zeros_like(var), torch.full_like(var, WHOLE)
        unseen = var == 0
        scale = (self.sharpness * (var + TINY).rsqrt()).masked_fill(unseen, 0.0)
        beta = math.log(area / (1 - area)) * math.sqrt(1 + math.pi * self.sharpness**2 / 8)
        return scale, (beta - mean * scale).masked_fill(unseen, WHOLE)

    def folded(self) -> tuple[Tensor, Tensor]:
        """Returns tokens (groups, T, C) and bias (groups, T) with which ``poi_masks`` gives the masks of eval mode."""
        tokens = self.mask_token.detach()
        if self.evidence == 'band':
            return tokens, tokens.new_zeros(tokens.shape[:2])
        found = [self._affine(mean, var, area) for mean, var, area in zip_equal(self.mean, self.var, self.areas)]
        scale, bias = (torch.stack(parts) for parts in zip_equal(*found))
        return tokens * scale[:, :, None], bias

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, WaveletBands | None]:
        """Returns the reconstructed features (N, C, H, W), the overlap of the masks, to be minimised, and the masks.

        These are None where x is too small for one level.
        """
        levels = usable_levels(x.shape[2:], self.levels, self.min_positions)
        if not levels:
            # The tokens stay in the graph: DDP waits for every parameter.
            return x, 0 * self.mask_token.sum(), None
        with torch.autocast(x.device.type, enabled=False):
            bands = dwt2d(full_precision(x), levels)
            masks = self.masks(x, bands)
            scale = (2 if self.evidence == 'band' else 1) / self.num_tokens

            def weigh(band: Tensor, mask: Tensor) -> Tensor:
                return band * (scale * mask.sum(1, keepdim=True))

            high = tuple(
                WaveletDetail(*(weigh(band, mask) for band, mask in zip_equal(detail, of_level)))
                for detail, of_level in zip_equal(bands.high, masks.high)
            )
            features = idwt2d(bands._replace(low=weigh(bands.low, masks.low), high=high)).to(x.dtype)
        overlaps = [poi.mask_similarity(group, self.dissimilarity) for group in poi.mask_groups(masks, self.grouping)]
        return features, torch.stack(overlaps).sum(), masks
