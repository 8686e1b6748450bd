"""Adds frequency prompts after modules of a model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from freekd_mm.prompts.masks import mask_groups
from freekd_mm.prompts.prompt import MODES, FrequencyPrompt
from freekd_mm.prompts.prompt_file import NAME
from freekd_mm.runtime.probe import Size, changes_in_training, first_accepted, probe_model
from freekd_mm.runtime.pull import task_loss
from freekd_mm.runtime.taps import TapRecorder, parse_taps


def find_channels(model: nn.Module, modules: Sequence[str], size: Size | None) -> dict[str, dict[int, int]]:
    """Returns the channels of every output that gets a prompt, by module path, then by index in its output."""
    taps = parse_taps(modules)

    def probe(size: Size) -> TapRecorder:
        recorder = TapRecorder(model, taps, 'teacher')
        probe_model(model, recorder, size, training=True)
        return recorder

    recorder = first_accepted([model], size, probe)
    channels: dict[str, dict[int, int]] = {}
    for tap in taps:
        outputs = recorder.outputs[tap.path]
        if len(outputs) != 1:
            raise ValueError(
                f"modules: '{tap.path}' should run once in the forward pass of {type(model).__name__}, so that each "
                f"level has its own prompt, but ran {len(outputs)} times; name another, like 'neck' or 'backbone'"
            )
        items = outputs[0] if isinstance(outputs[0], (tuple, list)) else [outputs[0]]
        tap.select(outputs[0])  # no index into a tensor
        picked = tap.select(list(range(len(items))))
        for index in picked if isinstance(picked, list) else [picked]:
            item = items[index]
            if not isinstance(item, Tensor) or item.ndim != 4 or not item.is_floating_point():
                raise TypeError(
                    f"modules: '{tap.path}' should give feature maps (N, C, H, W), but item {index} of its output is a "
                    f"{type(item).__name__}; name another module, or items as in '{tap.path}[0]'"
                )
            channels.setdefault(tap.path, {})[index] = item.shape[1]
    return channels


#: Options of a prompt that are in a prompt file.
STORED = ('levels', 'grouping', 'num_tokens', 'evidence')


class PromptBank(nn.Module):
    """All prompts of a model, as one child module of it; the options are of :class:`FrequencyPrompt`.

    Forward hooks on the prompted modules replace their outputs; one on the model adds the dissimilarity and values
    for the log to its losses, inside its forward pass, where DDP sees them. The channels are those of the prompted
    outputs by module path, then by index in the module's output. The weight is that of the mode if it is None.
    """

    def __init__(self, channels: dict[str, dict[int, int]], weight: float | None = None, **options: Any) -> None:
        super().__init__()
        #: Module, index and prompt of each prompted output.
        self.places = [
            (module, index, FrequencyPrompt(width, **options))
            for module, levels in channels.items()
            for index, width in levels.items()
        ]
        # A dot is not allowed in the name of a child.
        self.prompts = nn.ModuleDict({f'{m.replace(".", "__")}__{i}': prompt for m, i, prompt in self.places})
        self.first = [self.places[0][2]]  # in a list: not a child once more
        self.weight = MODES[self.first[0].mode]['weight'] if weight is None else weight
        #: The parts of the teacher that stay in eval mode.
        self._stay: list[nn.Module] = []
        #: Whether the outputs are replaced.
        self.active = True
        #: Where each forward pass stores its masks, by place: one (N, T, h, w) per group. None to store none.
        self.seen: dict[str, list[Tensor]] | None = None
        self.overlaps: list[Tensor] = []

    def content(self) -> dict[str, Any]:
        """Returns tokens, bias and options, as in a prompt file."""
        folded = {f'{module}[{index}]': prompt.folded() for module, index, prompt in self.places}
        tokens, bias = ({place: pair[i] for place, pair in folded.items()} for i in (0, 1))
        first = self.first[0]
        options = {name: getattr(first, name) for name in STORED}
        return dict(tokens=tokens, bias=bias if first.evidence == 'magnitude' else {}, **options)

    def train(self, mode: bool = True) -> PromptBank:
        """Sets the mode, and norms and dropouts of the teacher back to eval mode: the last child runs this last."""
        for module in self._stay:
            module.training = False
        return super().train(mode)

    def plug_into(self, model: nn.Module) -> None:
        """Becomes the last child of a frozen model, and replaces the outputs of its modules."""
        self.to(next(model.parameters()).device)
        self._stay = [module for module in model.modules() if changes_in_training(module)]
        model.add_module(NAME, self)
        for module in dict.fromkeys(module for module, _, _ in self.places):
            model.get_submodule(module).register_forward_hook(partial(self._replace, module))
        model.register_forward_hook(self._add_losses)

    def _replace(self, module: str, _: nn.Module, args: Any, output: Any) -> Any:
        if not self.active:
            return output
        items = list(output) if isinstance(output, (tuple, list)) else [output]
        for place, index, prompt in self.places:
            if place != module:
                continue
            items[index], overlap, masks = prompt(items[index])
            if self.seen is not None:
                groups = mask_groups(masks, prompt.grouping) if masks is not None else []
                self.seen[f'{module}[{index}]'] = [group.detach().float().cpu() for group in groups]
            if self.training and torch.is_grad_enabled():
                self.overlaps.append(overlap)
        return items if isinstance(output, list) else tuple(items) if isinstance(output, tuple) else items[0]

    def _add_losses(self, model: nn.Module, args: Any, output: Any) -> Any:
        if not self.overlaps or not isinstance(output, dict):
            return output
        overlap = torch.stack(self.overlaps).sum()
        self.overlaps = []
        return {
            **output,
            'loss_prompt_dissimilarity': self.weight * overlap,
            'prompt/task': task_loss(output, overlap).detach(),
            'prompt/overlap': overlap.detach(),
        }
