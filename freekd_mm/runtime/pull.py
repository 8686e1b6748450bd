"""How hard a distillation loss pulls at the student compared with the task, and the weight that keeps this ratio."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from mmengine.dist import all_reduce
from torch import Tensor

from freekd_mm.checks import check_positive
from freekd_mm.log import say, warn
from freekd_mm.runtime.taps import leaves

#: Measured at each of the first steps, where the pull is extreme, and seldom afterwards.
FIRST, EVERY = 10, 50
#: The mean over the measurements so far, later over about the last four.
SMOOTHING = 0.25
#: Warned of: at least this many times as hard as the task, or as weak.
HARD, WEAK = 10.0, 0.02
#: Why a model has no gradient at its taps alone, by what PyTorch says of it.
UNMEASURED = {
    # Reentrant ones allow only one backward pass, and only a whole one.
    'heckpoint': 'activation checkpoints lie between the taps and the loss',
    'dependency not found': 'PyTorch before 2.0 cannot differentiate a part of this model by its features',
}


class Pull:
    """The ratio of two gradient norms at the taps of an entry: of its loss, its weight left out, and of the task.

    The weight is a factor on the loss; ``'auto'`` holds the ratio at 1, ``'auto:0.3'`` at 0.3.
    """

    def __init__(self, name: str, weight: float | str) -> None:
        self.name, self.fixed = name, 1.0
        self.target: float | None = None
        if isinstance(weight, str):
            kind, colon, target = weight.partition(':')
            try:
                self.target = float(target if colon else 1) if kind == 'auto' else 0.0
            except ValueError:
                self.target = 0.0
            if not 0 < self.target < math.inf:
                raise ValueError(
                    f"weight of distill '{name}' should be a number, 'auto', or 'auto:0.3' for 0.3 times the task's "
                    f'pull, but got {weight!r}'
                )
        else:
            check_positive(f"weight of distill '{name}'", weight, zero=True)
            self.fixed = weight
        self.count, self.log_ratio = 0, 0.0
        self.off = False

    @property
    def waiting(self) -> bool:
        """Whether the weight is not known yet."""
        return self.target is not None and self.count == 0

    @property
    def ratio(self) -> float:
        """How many times as hard as the task the loss pulls without its weight."""
        return math.exp(self.log_ratio)

    @property
    def weight(self) -> float:
        """Factor on the loss; for ``'auto'`` the target over the ratio, and nothing before it is known."""
        if self.target is None:
            return self.fixed
        return 0.0 if self.waiting else self.target / self.ratio

    def measure(self, loss: Tensor, task: Tensor, levels: Sequence[Tensor]) -> None:
        """Compares the entry's loss, its weight left out, with the student's own losses, the same on all processes."""
        if self.off:
            return
        try:
            norms = torch.stack([_squared_norm(loss, levels), _squared_norm(task, levels)])
        except RuntimeError as error:
            why = next((why for text, why in UNMEASURED.items() if text in str(error)), None)
            if why is None:
                raise
            self._give_up(why)
            return
        all_reduce(norms)
        own, other = norms.tolist()
        if not (0 < own < math.inf and 0 < other < math.inf):
            if self.count == 0 and other < 0:
                self._give_up("the student's own losses do not pull there")
            return
        self.count += 1
        step = 0.5 * math.log(own / other) - self.log_ratio
        self.log_ratio += max(1 / self.count, SMOOTHING) * step
        if self.count == FIRST:
            self._say()

    def _give_up(self, why: str) -> None:
        """Continues to train without measurements, unless the weight depends on them."""
        if self.target is not None:
            raise ValueError(
                f"distill '{self.name}': weight='auto' needs the pull at the taps, but {why}; give a number"
            )
        say(f"distill '{self.name}': its pull at the taps is not measured, because {why}")
        self.off = True

    def _say(self) -> None:
        """Says once, after the first steps, how hard the entry pulls."""
        pull, tell = self.ratio * self.weight, say
        text = f"distill '{self.name}' pulls {pull:.2g} times as hard as the task at its taps (after {FIRST} steps)"
        if self.target is not None:
            text += f': weight {self.weight:.3g}'
        elif pull and not WEAK < pull < HARD:
            tell, what = warn, 'is too strong' if pull >= HARD else 'is too weak'
            text += f". That {what}: try weight={self.fixed / pull:.2g} for a ratio of 1, or weight='auto'"
        tell(text)


def is_due(steps: int) -> bool:
    """Tells whether a step is measured; it costs the student a backward pass through what comes after the taps."""
    return steps < FIRST or steps % EVERY == 0


def task_loss(losses: dict, inputs: Tensor) -> Tensor:
    """Returns the sum of a student's losses as mmengine adds them up, 0 on the device of ``inputs`` if it has none."""
    found = [item.mean() for name, value in losses.items() if 'loss' in name for item in leaves(value)]
    return torch.stack([inputs.new_zeros((), requires_grad=True), *found]).sum()


def _squared_norm(loss: Tensor, levels: Sequence[Tensor]) -> Tensor:
    """Returns the squared norm of the gradient of a loss by some features, in float32; -1 if it has none there."""
    wanted = [level for level in levels if level.requires_grad]
    # Half precision loses small gradients.
    scale = 1024.0 if any(level.dtype == torch.float16 for level in wanted) else 1.0
    gradients = torch.autograd.grad(loss * scale, wanted, retain_graph=True, allow_unused=True)
    found = [(gradient.float() / scale).square().sum() for gradient in gradients if gradient is not None]
    return torch.stack(found).sum() if found else torch.zeros((), device=loss.device) - 1
