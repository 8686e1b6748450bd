"""The inheriting strategy: a student that starts with its teacher's weights if both have the same module."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from freekd_mm.checks import did_you_mean
from freekd_mm.compat.versions import zip_equal
from freekd_mm.log import say

# Not inherited by default: a smaller student has another backbone, and mmengine's preprocessor has no weights.
OWN = ('backbone', 'data_preprocessor')
CLASSIFIER = 'decode_head.conv_seg'


def fitting_weights(student: nn.Module, teacher: nn.Module, module: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Returns the teacher's weights in a module that fit the student's names and shapes, and all of the student's.

    Where the student is narrower, these are the weights between the teacher's first channels. A width is what some
    weights of the module give and others take: not the number of classes, and not the channels of a backbone.
    """
    # Counters (of batch normalisation) have one shape everywhere, and say nothing.
    own = {k: v for k, v in student.state_dict().items() if k.startswith(f'{module}.') and v.is_floating_point()}
    theirs = {k: v for k, v in teacher.state_dict().items() if k in own and v.dim() == own[k].dim()}
    pairs = {k: list(zip_equal(own[k].shape, v.shape)) for k, v in theirs.items()}
    given, taken = ({sizes[axis] for sizes in pairs.values() if len(sizes) > 1} for axis in (0, 1))
    narrower = {(size, wider) for size, wider in given & taken if size < wider}
    fitting = [k for k, sizes in pairs.items() if all(a == b or (a, b) in narrower for a, b in sizes)]
    return {k: theirs[k][tuple(map(slice, own[k].shape))] for k in fitting}, own


def choose_modules(student: nn.Module, teacher: nn.Module, modules: Sequence[str] = ()) -> list[str]:
    """Checks the modules to inherit; without names all that fit, possibly none."""
    # These are the children of the student, except the backbone, of which the teacher has more than half of the
    # weights. For a segmenter whose head does not fit it is only the classifier.
    for module in modules:
        _checked_weights(student, teacher, module)
    if modules:
        return list(modules)

    def fits(module: str) -> bool:
        found, own = (sum(map(Tensor.numel, part.values())) for part in fitting_weights(student, teacher, module))
        return found > own / 2

    fitting = [name for name, _ in student.named_children() if name not in OWN and fits(name)]
    return fitting if 'decode_head' in fitting or not fits(CLASSIFIER) else [*fitting, CLASSIFIER]


def _checked_weights(
    student: nn.Module, teacher: nn.Module, module: str
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Returns the weights that fit; raises an error if there are none."""
    weights, own = fitting_weights(student, teacher, module)
    if not own:
        names = [name for name, _ in student.named_modules() if name]
        raise ValueError(
            f'inherit should name modules of the student that have weights, for example '
            f'{", ".join(name for name, _ in student.named_children())}, but got {module!r}.'
            f'{did_you_mean(module, names)}'
        )
    if not weights:
        raise ValueError(
            f"inherit: {module!r} should have weights with the same names as the teacher's and no more channels, but "
            'has none; leave it out'
        )
    return weights, own


def inherited_weights(student: nn.Module, teacher: nn.Module, modules: Sequence[str]) -> dict[str, Tensor]:
    """Returns copies of the weights of some modules that a student starts with."""
    # What differs inside them (the lateral convolutions of an FPN on a narrower backbone) stays the student's own.
    if isinstance(modules, str):
        raise TypeError(f'inherit should be a list of module names, but got {modules!r}; write [{modules!r}]')
    found: dict[str, Tensor] = {}
    for module in modules:
        weights, own = _checked_weights(student, teacher, module)
        say(f'{module}: the student starts with {len(weights)} of {len(own)} weights of its teacher')
        found.update({name: value.detach().clone() for name, value in weights.items()})
    return found
