"""The methods by name: what ``tools/make_config.py --method`` knows, one entry each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Dict

from freekd_mm.checks import did_you_mean
from freekd_mm.compat.versions import zip_equal
from freekd_mm.runtime.cross_head import DenseHead
from freekd_mm.runtime.wiring import Shape, match_levels

Entries = Dict[str, dict]
#: Entries whose loss takes a prompt.
PROMPTED = ('wavelet', 'freekd')
#: 20 of 240 epochs in the released configs on CIFAR-100 (1 of 100 on ImageNet).
FAM_WARMUP = 0.08
#: Scores and boxes of a dense head.
HEAD_TAPS = ['bbox_head[0]', 'bbox_head[1]']


@dataclass(frozen=True)
class Wiring:
    """What probing a student (``_s``) and a teacher (``_t``) found."""

    #: Taps of the features, and the shapes (C, H, W) of their paired levels for one dummy image.
    features_s: str
    features_t: str
    shapes_s: tuple[Shape, ...]
    shapes_t: tuple[Shape, ...]
    #: Tap of the classification logits of both, None if they cannot be compared; how many classes they score.
    logits: str | None = None
    num_classes: int = 0
    use_sigmoid: bool = False
    why_no_logits: str = ''
    resize: bool = False  # whether the teacher's logits have another size
    indices_t: tuple[int, ...] | None = None  # which of the teacher's levels are paired; None for all of them
    head: Wiring | None = None  # the same for what the decode heads classify, if that is compared too
    stages: tuple[tuple[Shape, ...], tuple[Shape, ...]] = ((), ())  # shapes of all that both backbones give
    #: The dense heads, or why there is none.
    dense_s: DenseHead | str = 'not probed'
    dense_t: DenseHead | str = 'not probed'

    def feature_entry(self, loss: dict, connector: dict | list[dict] | None = None) -> dict:
        """Returns an entry on the features."""
        adapted = {} if connector is None else {'connector': connector}
        return {'student': self.features_s, 'teacher': self.features_t, **adapted, 'loss': loss}

    def prompt_option(self, file: str, loss: dict) -> str | dict:
        """Returns the prompt file, or which of the teacher's prompts to take if the student has fewer levels."""
        if self.indices_t is None:
            return file
        return {
            'type': 'freekd_mm.PoIMaskGenerator',
            'channels': channels(self.shapes_t),
            **({'levels': loss['levels']} if 'levels' in loss else {}),
            'prompt': file,
            'indices': self.indices_t,
        }

    def dense_heads(self, method: str) -> tuple[DenseHead, DenseHead]:
        """Returns the dense heads of both for a method that compares boxes."""
        for head, role in ((self.dense_s, 'student'), (self.dense_t, 'teacher')):
            if isinstance(head, str):
                raise ValueError(f'{method} needs dense heads of student and teacher, but of the {role}: {head}')
        if self.logits is None:
            raise ValueError(f'{method} needs dense heads that look at the same levels, but {self.why_no_logits}')
        return self.dense_s, self.dense_t  # type: ignore[return-value]


@dataclass(frozen=True)
class Method:
    """One method: a line on when it helps, and the entries it adds to a config."""

    summary: str
    entries: Callable[[Wiring], Entries]
    prompt: str | None = None  # mode of the prompt that stage 1 makes for it; None for a method with one stage
    warmup: float = 0.0  # share of the training over which its weight grows
    on_features: bool = True  # whether it compares features, and so what the decode heads classify too


def channels(shapes: tuple[Shape, ...]) -> int | list[int]:
    """Returns the channels of levels (C, H, W), one number if all agree."""
    found = [shape[0] for shape in shapes]
    return found[0] if len(set(found)) == 1 else found


def _features(name: str, loss: str, **options: object) -> Callable[[Wiring], Entries]:
    return lambda wiring: {name: wiring.feature_entry({'type': loss, **options})}


def _bands(name: str, loss: str, **options: object) -> Callable[[Wiring], Entries]:
    loss = f'freekd_mm.{loss}'
    return lambda wiring: {name: wiring.feature_entry({'type': loss, 'channels': channels(wiring.shapes_t), **options})}


def _fam(connector: str) -> Callable[[Wiring], Entries]:
    def entries(wiring: Wiring) -> Entries:
        adapter = {
            'type': f'freekd_mm.{connector}',
            'in_channels': channels(wiring.shapes_s),
            'out_channels': channels(wiring.shapes_t),
            'num_levels': len(wiring.shapes_s),
        }
        return {'famkd': wiring.feature_entry({'type': 'freekd_mm.FeatureMSELoss'}, adapter)}

    return entries


def _logits(name: str, kind: str) -> Callable[[Wiring], Entries]:
    def entries(wiring: Wiring) -> Entries:
        if wiring.logits is None:
            why = wiring.why_no_logits
            raise ValueError(f'a logit loss needs classification logits of student and teacher, but {why}')
        # A sigmoid is of a dense detection head: nearly all positions are background.
        dense = {'use_sigmoid': True, 'foreground': True} if wiring.use_sigmoid else {}
        sizes = {'resize': True} if wiring.resize else {}
        loss = {'type': f'freekd_mm.{kind}', 'num_classes': wiring.num_classes, **dense, **sizes}
        return {name: {'student': wiring.logits, 'teacher': wiring.logits, 'loss': loss}}

    return entries


def _ld(wiring: Wiring) -> Entries:
    student, teacher = wiring.dense_heads('ld')
    if not student.bins == teacher.bins > 0:
        raise ValueError(
            'ld needs heads that give distributions over the same bins (GFLHead with one reg_max), but the student '
            f'predicts its boxes as {student.boxes} ({student.bins} bins) and the teacher as {teacher.boxes} '
            f'({teacher.bins} bins)'
        )
    return {'ld': {'student': HEAD_TAPS, 'teacher': HEAD_TAPS, 'loss': {'type': 'freekd_mm.LDLoss'}}}


def _crosskd(wiring: Wiring) -> Entries:
    student, teacher = wiring.dense_heads('crosskd')
    if not student.tower or not teacher.tower:
        who = 'student' if not student.tower else 'teacher'
        raise ValueError(
            f'crosskd needs heads with the towers cls_convs and reg_convs (GFL, RetinaNet, FCOS, ATSS), but the {who} '
            'has none'
        )
    # The last layer of the tower but one, as in the released configs: 3 of 4.
    own, start = max(student.tower - 1, 1) - 1, max(teacher.tower - 1, 1)
    loss: dict = {'type': 'freekd_mm.CrossKDLoss', 'boxes': teacher.boxes}
    if teacher.stds != (1.0, 1.0, 1.0, 1.0):
        loss['stds'] = teacher.stds
    entry = {
        'student': [f'bbox_head.cls_convs.{own}', f'bbox_head.reg_convs.{own}'],
        'teacher': HEAD_TAPS,
        'through': {'start': start},
        'loss': loss,
    }
    return {'crosskd': entry}


def _mgd(wiring: Wiring) -> Entries:
    connectors = [
        {'type': 'mmrazor.MGDConnector', 'student_channels': student[0], 'teacher_channels': teacher[0]}
        for student, teacher in zip_equal(wiring.shapes_s, wiring.shapes_t)
    ]
    same = all(connector == connectors[0] for connector in connectors)
    loss = {'type': 'mmrazor.MGDLoss', 'alpha_mgd': 2e-5}
    return {'mgd': wiring.feature_entry(loss, connectors[0] if same else connectors)}


def _dctkd(wiring: Wiring) -> Entries:
    # Made for the stages of a backbone after their ReLU.
    match_levels(*wiring.stages, 'dctkd')
    return {'dctkd': {'student': 'backbone', 'teacher': 'backbone', 'loss': {'type': 'freekd_mm.DCTAttentionLoss'}}}


WAVELET = _bands('wavelet', 'WaveletLoss')
METHODS: dict[str, Method] = {
    'best': Method('what we recommend, today wavelet alone', WAVELET),
    'wavelet': Method('high wavelet bands of the features, our own recipe in one stage', WAVELET),
    'wavelet-prompt': Method('the same where a prompt of the teacher selects: two stages', WAVELET, 'selective'),
    'freekd': Method("FreeKD, both stages of the paper with the paper's loss", _bands('freekd', 'FreeKDLoss'), 'paper'),
    'freekd-code': Method('FreeKD, the loss of its released code', _bands('freekd', 'FreeKDLoss', mode='code'), 'code'),
    'freekd-plus': Method('FreeKD+, our interpretation of that paper', _bands('freekd', 'FreeKDPlusLoss'), 'selective'),
    'famkd': Method('a learnable Fourier adapter: for other architectures', _fam('FAMConnector'), warmup=FAM_WARMUP),
    'famkd-review': Method(
        'FAM with knowledge review across levels: for pyramids, slower', _fam('FAMReviewConnector'), warmup=FAM_WARMUP
    ),
    'figkd': Method(
        'wavelet detail of the logits: for the same classes; alone, or added to a feature loss',
        _logits('figkd', 'FiGKDLoss'),
        on_features=False,
    ),
    'kl': Method('class probabilities, added to a feature loss', _logits('kl', 'LogitKLLoss'), on_features=False),
    'crosskd': Method(
        "the student's features through the teacher's head, against its predictions: GFL, RetinaNet, FCOS, ATSS",
        _crosskd,
        on_features=False,
    ),
    'ld': Method('box distributions of heads like GFL, added to a feature loss', _ld, on_features=False),
    'dctkd': Method(
        "DCT of the attention maps of the backbone's stages: cheap, any channels and sizes",
        _dctkd,
        on_features=False,
    ),
    'mse': Method('plain L2 on the features, a baseline', _features('mse', 'freekd_mm.FeatureMSELoss')),
    'pkd': Method(
        "mmrazor's PKD (standardised features), a strong baseline", _features('pkd', 'mmrazor.PKDLoss', loss_weight=1.0)
    ),
    'cwd': Method(
        "mmrazor's channel-wise divergence, a baseline for segmentation",
        _features('cwd', 'mmrazor.ChannelWiseDivergence', loss_weight=1.0),
    ),
    'mgd': Method("mmrazor's masked generative distillation, a baseline", _mgd),
}

RENAMED = {'freekd-prompt': 'wavelet-prompt', 'freekd-paper': 'freekd'}  # old names, and their present names


def parse_methods(text: str) -> list[str]:
    """Reads ``'wavelet'`` or a stack of methods, ``'wavelet+figkd'``."""
    names = text.split('+')
    for name in names:
        if name in RENAMED:
            raise ValueError(f'method {name!r} is called {RENAMED[name]!r} now; all: {", ".join(METHODS)}')
        if name not in METHODS:
            raise ValueError(
                f'method should be one of {", ".join(METHODS)}, or several joined by +, but got {name!r}.'
                f'{did_you_mean(name, METHODS)}'
            )
    return names


def prompt_modes(text: str) -> dict[str, str]:
    """Returns the mode of the prompt that each of joined methods needs from stage 1; none for one stage."""
    return {name: mode for name in parse_methods(text) if (mode := METHODS[name].prompt)}


def prompted(text: str) -> list[str]:
    """Returns the entries of joined methods that take a prompt: of those that need one, else of all that can."""
    text = text.replace('best', 'wavelet')  # which it stands for
    takers = [*prompt_modes(text)] or parse_methods(text)
    return [entry for entry in PROMPTED if any(name.startswith(entry) for name in takers)]


def method_entries(text: str, wiring: Wiring) -> Entries:
    """Returns the entries of one or several methods; those on what the decode heads classify end in ``_head``."""
    entries: Entries = {}
    for name in parse_methods(text):
        method = METHODS[name]
        found = method.entries(wiring)
        if wiring.head is not None and method.on_features:
            found.update({f'{key}_head': entry for key, entry in method.entries(wiring.head).items()})
        for key, entry in found.items():
            if key in entries:
                raise ValueError(f'methods {text!r} should not repeat one another, but both have an entry {key!r}')
            entries[key] = entry
    return entries


def method_hooks(text: str, wiring: Wiring) -> list[dict]:
    """Returns the hooks of one or several methods: a warm-up of the weights, if a method has one."""
    return [
        {
            'type': 'freekd_mm.DistillScheduleHook',
            'warmup': METHODS[name].warmup,
            'entries': list(method_entries(name, wiring)),
        }
        for name in parse_methods(text)
        if METHODS[name].warmup
    ]


def list_methods() -> str:
    """Returns the methods with one line each."""
    width = max(map(len, METHODS))
    return '\n'.join(f'{name.ljust(width)}  {method.summary}' for name, method in METHODS.items())
