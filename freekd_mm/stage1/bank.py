"""Plugs frequency prompts behind modules of a model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from freekd_mm.frequency import WaveletBands
from freekd_mm.prompts.masks import mask_groups
from freekd_mm.prompts.prompt import FrequencyPrompt
from freekd_mm.prompts.prompt_file import NAME
from freekd_mm.runtime.probe import changes_in_training
from freekd_mm.stage1.places import as_items


class PromptBank(nn.Module):
    """All prompts of a model, as one child module of it.

    Forward hooks on the prompted modules replace their outputs; one on the model adds the dissimilarity and what
    is worth logging to its losses, inside of its forward pass, where DDP sees them.

    Args:
        channels: Channels of the prompted outputs by module path, then by index in the module's output.
        weight: Factor on the dissimilarity.
        options: Options of :class:`FrequencyPrompt`.
    """

    def __init__(self, channels: dict[str, dict[int, int]], weight: float, **options: Any) -> None:
        super().__init__()
        self.weight = weight
        self.channels = channels
        self.prompts = nn.ModuleDict(
            {
                self.key(module, index): FrequencyPrompt(width, **options)
                for module, levels in channels.items()
                for index, width in levels.items()
            }
        )
        #: What of the teacher stays in eval mode.
        self._stay: list[nn.Module] = []
        #: Set for the step whose masks are wanted as pictures.
        self.keep_masks = False
        self.kept: dict[str, list[Tensor]] = {}
        self.overlaps: list[Tensor] = []
        self.moments: list[Tensor] = []

    def train(self, mode: bool = True) -> PromptBank:
        """Sets the mode, and norms and dropouts of the teacher back to eval mode: as its last child this comes last."""
        for module in self._stay:
            module.training = False
        return super().train(mode)

    @staticmethod
    def key(module: str, index: int) -> str:
        """Returns the name of a prompt among the children; a dot is not allowed there."""
        return f'{module.replace(".", "__")}__{index}'

    def prompt_of(self, module: str, index: int) -> FrequencyPrompt:
        """Returns the prompt of one output."""
        return self.prompts[self.key(module, index)]  # type: ignore[return-value]

    def tokens(self) -> dict[str, dict[int, Tensor]]:
        """Returns the tokens (groups, T, C) by module path and index."""
        return {
            module: {index: self.prompt_of(module, index).mask_token.detach() for index in levels}
            for module, levels in self.channels.items()
        }

    def options(self) -> dict[str, Any]:
        """Returns the options that stage 2 needs to make the same masks; they are the same for all prompts."""
        prompt = next(iter(self.prompts.values()))
        return {name: getattr(prompt, name) for name in ('levels', 'wavelet', 'grouping', 'num_tokens')}

    def plug_into(self, model: nn.Module) -> None:
        """Becomes the last child of a frozen model, and replaces the outputs of its modules."""
        self.to(next(model.parameters()).device)
        self._stay = [module for module in model.modules() if changes_in_training(module)]
        model.add_module(NAME, self)
        for module in self.channels:
            model.get_submodule(module).register_forward_hook(partial(self._replace, module))
        model.register_forward_hook(self._add_losses)

    def _replace(self, module: str, _: nn.Module, args: Any, output: Any) -> Any:
        items = as_items(output)
        for index in self.channels[module]:
            prompt = self.prompt_of(module, index)
            items[index], overlap, masks = prompt.prompt(items[index])
            if self.training and torch.is_grad_enabled():
                self.overlaps.append(overlap)
                self._note(f'{module}[{index}]', mask_groups(masks, prompt.grouping), masks)
        if not isinstance(output, (tuple, list)):
            return items[0]
        return items if isinstance(output, list) else tuple(items)

    def _note(self, place: str, groups: Sequence[Tensor], masks: WaveletBands) -> None:
        with torch.no_grad():
            self.moments += [torch.stack((group.mean(), group.square().mean())) for group in groups]
        if self.keep_masks:
            self.kept[place] = [group[0].detach().float().cpu() for group in groups]

    def _add_losses(self, model: nn.Module, args: Any, output: Any) -> Any:
        if not self.overlaps or not isinstance(output, dict):
            return output
        overlap = torch.stack(self.overlaps).mean()
        mean, square = torch.stack(self.moments).mean(0)
        task = sum(_total(value) for name, value in output.items() if 'loss' in name)
        self.overlaps, self.moments = [], []
        return {
            **output,
            'loss_prompt_dissimilarity': self.weight * overlap,
            'prompt/task': torch.as_tensor(task, device=overlap.device),
            'prompt/overlap': overlap.detach(),
            'prompt/mask_mean': mean,
            'prompt/mask_std': (square - mean.square()).clamp(min=0).sqrt(),
        }


def _total(value: Any) -> Tensor:
    """Sums what a model gave as one loss: a tensor or a list of tensors."""
    values = value if isinstance(value, (tuple, list)) else [value]
    return torch.stack([item.detach().float().mean() for item in values]).sum()
