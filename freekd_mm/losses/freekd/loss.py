"""FreeKD's second stage (CVPR 2024, arXiv 2311.12079): distillation of masked wavelet bands."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Literal, cast

from mmengine.logging import print_log
from torch import Tensor

from freekd_mm.checks import check_choice, check_positive
from freekd_mm.compat.versions import zip_equal
from freekd_mm.frequency import WaveletBands, WaveletDetail
from freekd_mm.frequency.wavelet import is_haar
from freekd_mm.losses.base import DistillLoss
from freekd_mm.losses.freekd.bands import NORMALIZATIONS, Distance, Normalize, band_distance, band_weights
from freekd_mm.losses.freekd.haar_step import TINY
from freekd_mm.losses.freekd.relation import Relation, RelationGate
from freekd_mm.registry import MODELS
from freekd_mm.tensors import check_same_shapes, mean, shapes

Auto = Literal['auto']
MaskScale = Literal['raw', 'mean']
#: What 'auto' means in each mode.
DEFAULTS: dict[str, dict[str, Any]] = {
    # What our benchmarks favour, see docs/benchmarks.md.
    'tuned': dict(
        relation=None,
        low_weight=0.0,
        high_weight=1.0,
        level_weights=1.0,
        normalize='batch',
        distance='l2',
        mask_scale='mean',
        loss_weight=2.0,
    ),
    'paper': dict(
        relation='mlp',
        low_weight=1.0,
        high_weight=1.0,
        level_weights=1.0,
        normalize='channel',
        distance='l1',
        mask_scale='raw',
        loss_weight=1.0,
    ),
    'code': dict(
        relation=None,
        low_weight=0.0,
        high_weight=1.0,
        level_weights=1.0,
        normalize='none',
        distance='l1',
        mask_scale='raw',
        loss_weight=1.0,
    ),
}
MODES = ('paper', 'code')


@MODELS.register_module()
class WaveletLoss(DistillLoss):
    r"""Distance between the wavelet bands of student and teacher where the teacher's prompt looks.

    With :math:`a_k, b_k` the bands of teacher and student, :math:`M_i` the T masks of the prompt and
    :math:`\langle \cdot \rangle` the mean over images, channels and positions. ``mode='code'`` is the released formula,
    summed over feature levels and over the three orientations o of each wavelet level j:

    .. math::
        L = \sum_{levels} \sum_j \frac{1}{3T} \sum_{o,i} \big\langle |M_i b_{j,o} - M_i a_{j,o}| \big\rangle

    ``mode='paper'`` compares all bands, normalised, with the relational weights :math:`\omega_r` of the channels,
    and takes means where the paper sums, so that the value is of the order of 1 for every model. ``mode='tuned'`` (of
    :class:`WaveletLoss`) is the same formula with the options that did best in our benchmarks: squared differences of
    the high bands alone, each divided by its deviation over the batch, masks of mean 1, without relation:

    .. math::
        L = \frac{1}{levels} \sum_{levels} \Big( w_{low} D_{low} + w_{high} \frac{1}{3J} \sum_{k\ high} D_k \Big),
        \quad D_k = \Big\langle \omega_r \tfrac{2}{T} \sum_i |M_i \hat b_k - M_i \hat a_k| \Big\rangle

    With ``distance='l2'`` the last factor is :math:`\tfrac{4}{T} \sum_i (M_i \hat b_k - M_i \hat a_k)^2`.

    A mask is not negative, so :math:`\sum_i |M_i b - M_i a| = (\sum_i M_i) |b - a|`: no tensor of tokens times
    channels times positions is made. Masks get no gradient.

    ``normalize`` brings the bands of teacher and student to a common scale, as raw low bands, fine levels or
    teachers of large features drown everything else. Deviations are about the mean for the low band and about 0 for
    the high bands, which have no mean:

    - ``'none'``: raw bands.
    - ``'teacher'``: both divided by the deviation of the teacher's band, per image over all channels.
    - ``'channel'``: each divided by its own deviation, per image and channel.
    - ``'band'``: each divided by its own deviation, per image over all channels (slower).
    - ``'batch'``: each divided by its own deviation, per channel over the batch of all processes (slower).
    - ``'feature'``: not the bands but the feature maps are standardised, per channel over the batch of all processes.
      With squared differences and bands weighed by their sizes that is PKD; other weights make it more or less of a
      frequency.

    All but ``'batch'`` and ``'feature'`` look at one image at a time: N images on two processes give the same loss and
    gradient as 2N on one, without communication.

    Args:
        channels: Channels of the features: one number, or one a feature level.
        num_tokens: Tokens of the prompt per band; None for what its file says.
        levels: Wavelet levels.
        wavelet: The wavelet.
        relation: ``'mlp'`` (the paper's gate), ``'free'`` (a gate without parameters), a dict with ``relation``
            and further options of :class:`~freekd_mm.losses.freekd.relation.RelationGate`, or None.
        low_weight: Weight of the low band.
        high_weight: Weight of the high bands: one number, or one a wavelet level, finest first.
        level_weights: Weight of the feature levels: one number, or one a level.
        normalize: See above.
        distance: ``'l1'``, or ``'l2'`` for squared differences (of masked bands, so with :math:`\sum_i M_i^2`).
        mask_scale: ``'raw'``: masks weigh as the prompt gives them, times 2 / T. ``'mean'``: the weights of each band
            of an image have mean 1, so that the prompt says where to look and not how much.
        prompt: Prompt file or URL (ours or in the released format), or the config of a mask generator, see
            :class:`freekd_mm.prompts.PoIMaskGenerator`. Without one this is plain frequency distillation.
        grouping: ``'level'`` or ``'band'``; None for what the prompt file says.
        loss_weight: Factor on the returned value; ``'auto'`` is 2 for ``'tuned'`` and 1 for the others.
    """

    mode = 'tuned'

    def __init__(
        self,
        channels: int | Sequence[int],
        num_tokens: int | None = None,
        levels: int = 3,
        wavelet: str = 'haar',
        relation: Relation | dict | Auto | None = 'auto',
        low_weight: float | Auto = 'auto',
        high_weight: float | Sequence[float] | Auto = 'auto',
        level_weights: float | Sequence[float] | Auto = 'auto',
        normalize: Normalize | Auto = 'auto',
        distance: Distance | Auto = 'auto',
        mask_scale: MaskScale | Auto = 'auto',
        prompt: str | os.PathLike | dict | None = None,
        grouping: Literal['level', 'band'] | None = None,
        loss_weight: float | Auto = 'auto',
    ) -> None:
        super().__init__(DEFAULTS[self.mode]['loss_weight'] if _is_auto(loss_weight) else cast(float, loss_weight))
        check_positive('levels', levels, integer=True)
        is_haar(wavelet)  # raises where there is no such wavelet
        self.channels = channels if isinstance(channels, int) else tuple(channels)
        self.levels, self.wavelet = levels, wavelet
        options = self._options(
            relation=relation,
            low_weight=low_weight,
            high_weight=high_weight,
            level_weights=level_weights,
            normalize=normalize,
            distance=distance,
            mask_scale=mask_scale,
        )
        self.normalize, self.distance = options['normalize'], options['distance']
        self.mask_scale = options['mask_scale']
        self.low_weight = options['low_weight']
        self.high_weights = self._per_level('high_weight', options['high_weight'], levels)
        self.level_weights = options['level_weights']
        self.masks = self._build_masks(prompt, num_tokens, grouping)
        self.gate = self._build_gate(options['relation'])

    def _options(self, **given: Any) -> dict[str, Any]:
        """Puts the mode's defaults in place of 'auto' and checks the rest."""
        defaults = {name: DEFAULTS[self.mode][name] for name in given}
        options = {name: defaults[name] if _is_auto(value) else value for name, value in given.items()}
        check_choice('normalize', options['normalize'], NORMALIZATIONS)
        check_choice('distance', options['distance'], ('l1', 'l2'))
        check_choice('mask_scale', options['mask_scale'], ('raw', 'mean'))
        check_positive('low_weight', options['low_weight'], zero=True)
        for name in ('high_weight', 'level_weights'):
            for weight in options[name] if isinstance(options[name], (tuple, list)) else (options[name],):
                check_positive(name, weight, zero=True)
        if self.mode == 'code' and options != defaults:
            changed = [name for name in options if options[name] != defaults[name]]
            raise ValueError(
                f"{', '.join(changed)} should be left out with mode='code', which is the released formula to the "
                f'letter, but got {", ".join(f"{name}={options[name]!r}" for name in changed)}; '
                "take mode='paper' to change it"
            )
        return options

    @staticmethod
    def _per_level(name: str, weights: float | Sequence[float], count: int) -> tuple[float, ...]:
        if isinstance(weights, (int, float)):
            return (float(weights),) * count
        if len(weights) != count:
            raise ValueError(f'{name} should be one number or one for each of the {count} levels, but got {weights}')
        return tuple(float(weight) for weight in weights)

    def _build_masks(
        self, prompt: str | os.PathLike | dict | None, num_tokens: int | None, grouping: str | None
    ) -> Any:
        if isinstance(prompt, dict):
            masks = MODELS.build(prompt)
        else:
            masks = MODELS.build(
                dict(
                    type='freekd_mm.PoIMaskGenerator',
                    channels=self.channels,
                    num_tokens=num_tokens,
                    levels=self.levels,
                    wavelet=self.wavelet,
                    grouping=grouping,
                    prompt=prompt,
                )
            )
        if self.mode == 'code' and getattr(masks, 'grouping', 'level') != 'level':
            raise ValueError("the prompt's grouping should be 'level' with mode='code', but got 'band'")
        if not getattr(masks, 'has_prompt', True):
            print_log(
                f'{type(self).__name__}: no prompt is given, so there are no masks: this is plain frequency '
                'distillation',
                'current',
            )
        return masks

    def _build_gate(self, relation: str | dict | None) -> RelationGate | None:
        if relation is None:
            return None
        options = dict(relation) if isinstance(relation, dict) else {'relation': relation}
        return RelationGate(channels=self.channels, **options)

    def compute(self, students: tuple[Tensor, ...], teachers: tuple[Tensor, ...]) -> Tensor:
        """Returns the loss; ``terms`` holds the part of the low and of the high bands of each level."""
        self._check(students, teachers)
        level_weights = self._per_level('level_weights', self.level_weights, len(teachers))
        # The mean over the levels but for 'code', so that the value does not grow with their number.
        share = 1.0 if self.mode == 'code' else 1 / len(teachers)
        masks = self.level_masks(students, teachers)
        gates = self.gate(students, teachers) if self.gate is not None else (None,) * len(teachers)
        values = []
        for level, (student, teacher, mask, gate) in enumerate(zip_equal(students, teachers, masks, gates)):
            weights = self._weights(teacher, mask)
            planes, low = self.level_distance(student, teacher, weights)
            if gate is not None:
                planes, low = planes * gate, low * gate.detach()
            value = mean(planes)
            values.append(share * level_weights[level] * value)
            self.terms[f'level{level}/high'] = (value.detach() - mean(low)) * share * level_weights[level]
            if self.low_weight:
                self.terms[f'level{level}/low'] = mean(low) * share * level_weights[level]
        return sum(values[1:], values[0])

    def level_masks(self, students: Sequence[Tensor], teachers: Sequence[Tensor]) -> Sequence[WaveletBands | None]:
        """Returns the masks of each level, (N, T, h, w) a band; None where there is no prompt."""
        return self.masks(teachers)

    def level_distance(self, student: Tensor, teacher: Tensor, weights: WaveletBands) -> tuple[Tensor, Tensor]:
        """Returns the distance of each image and channel (N, C), and without gradient the low band's part."""
        return band_distance(student, teacher, weights, self.normalize, self.distance)

    def _weights(self, teacher: Tensor, masks: WaveletBands | None) -> WaveletBands:
        """Returns the weight of each position of each band of one level, masks summed over the tokens."""
        orientations = 3 if self.mode == 'code' else 3 * self.levels
        high = [weight / orientations for weight in self.high_weights]
        if masks is not None:
            masks = self._sum_tokens(masks)
        return band_weights(teacher, self.wavelet, self.low_weight, high, masks)

    def _sum_tokens(self, masks: WaveletBands) -> WaveletBands:
        """Sums masks (N, T, h, w), or their squares for squared distances, to (N, 1, h, w)."""
        power = 1 if self.distance == 'l1' else 2
        # A fresh prompt's masks are 1/2: scaled to weigh 1 for every T, as no masks do.
        factor = (1 if self.mode == 'code' else 2**power) / masks.low.shape[1]
        seen: dict[int, Tensor] = {}

        def total(mask: Tensor) -> Tensor:
            if id(mask) not in seen:
                weight = mask.pow(power).sum(1, keepdim=True) * factor
                if self.mask_scale == 'mean':
                    weight = weight / weight.mean((2, 3), keepdim=True).clamp(min=TINY)
                seen[id(mask)] = weight
            return seen[id(mask)]

        high = tuple(WaveletDetail(*(total(mask) for mask in detail)) for detail in masks.high)
        return masks._replace(low=total(masks.low), high=high)

    def _check(self, students: Sequence[Tensor], teachers: Sequence[Tensor]) -> None:
        """Raises ValueError where the features do not fit the options or each other."""
        name = type(self).__name__
        if not isinstance(self.channels, int) and len(self.channels) != len(teachers):
            raise ValueError(
                f'{name}: channels should be one number or one for each of the {len(teachers)} levels '
                f'({shapes(teachers)}), but got {self.channels}'
            )
        for level, teacher in enumerate(teachers):
            wanted = self.channels if isinstance(self.channels, int) else self.channels[level]
            if teacher.ndim != 4 or teacher.shape[1] != wanted:
                raise ValueError(
                    f'{name}: level {level} of the teacher should be (N, {wanted}, H, W) after its channels option, '
                    f'but got {tuple(teacher.shape)}'
                )
        check_same_shapes(name, students, teachers)


def _is_auto(value: Any) -> bool:
    return isinstance(value, str) and value == 'auto'


@MODELS.register_module()
class FreeKDLoss(WaveletLoss):
    """FreeKD's second stage: ``mode='paper'``, the default, or ``mode='code'``, the released formula.

    Args:
        channels: Channels of the features: one number, or one a feature level.
        num_tokens: Tokens of the prompt per band; None for what its file says.
        levels: Wavelet levels.
        wavelet: The wavelet.
        mode: ``'paper'`` or ``'code'``: the meaning of ``'auto'`` below. ``'code'`` is the released formula to the
            letter, and takes none of the options from ``relation`` to ``mask_scale``.
        relation: As in :class:`WaveletLoss`.
        low_weight: As in :class:`WaveletLoss`.
        high_weight: As in :class:`WaveletLoss`.
        level_weights: As in :class:`WaveletLoss`.
        normalize: As in :class:`WaveletLoss`.
        distance: As in :class:`WaveletLoss`.
        mask_scale: As in :class:`WaveletLoss`.
        prompt: As in :class:`WaveletLoss`.
        grouping: As in :class:`WaveletLoss`.
        loss_weight: Factor on the returned value.
    """

    def __init__(
        self,
        channels: int | Sequence[int],
        num_tokens: int | None = None,
        levels: int = 3,
        wavelet: str = 'haar',
        mode: Literal['paper', 'code'] = 'paper',
        relation: Relation | dict | Auto | None = 'auto',
        low_weight: float | Auto = 'auto',
        high_weight: float | Sequence[float] | Auto = 'auto',
        level_weights: float | Sequence[float] | Auto = 'auto',
        normalize: Normalize | Auto = 'auto',
        distance: Distance | Auto = 'auto',
        mask_scale: MaskScale | Auto = 'auto',
        prompt: str | os.PathLike | dict | None = None,
        grouping: Literal['level', 'band'] | None = None,
        loss_weight: float | Auto = 'auto',
    ) -> None:
        if cast(str, mode) == 'tuned':
            raise ValueError("mode should be 'paper' or 'code', but got 'tuned': that loss is freekd_mm.WaveletLoss")
        check_choice('mode', mode, MODES)
        self.__dict__['mode'] = mode
        super().__init__(
            channels,
            num_tokens,
            levels,
            wavelet,
            relation=relation,
            low_weight=low_weight,
            high_weight=high_weight,
            level_weights=level_weights,
            normalize=normalize,
            distance=distance,
            mask_scale=mask_scale,
            prompt=prompt,
            grouping=grouping,
            loss_weight=loss_weight,
        )
