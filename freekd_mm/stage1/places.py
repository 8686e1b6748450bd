"""Where a teacher can have prompts: the outputs of its modules, found with a dummy image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from freekd_mm.runtime.probe import Size, first_accepted, probe_model
from freekd_mm.runtime.taps import TapRecorder, parse_taps


def as_items(output: Any) -> list[Any]:
    """Returns a module's output as a list of levels."""
    return list(output) if isinstance(output, (tuple, list)) else [output]


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
        if not outputs:
            raise RuntimeError(
                f"modules: '{tap.path}' should run in the forward pass of {type(model).__name__}, but did not; "
                "name a module that is called as such, like 'neck' or 'backbone'"
            )
        if len(outputs) > 1:
            raise ValueError(
                f"modules: '{tap.path}' should run once in a forward pass, so that each level has its own prompt, "
                f'but runs {len(outputs)} times; name a module before it'
            )
        items = as_items(outputs[0])
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
