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


def is_feature_map(item: Any) -> bool:
    """Tells whether an item of an output can take a prompt: a floating-point (N, C, H, W)."""
    return isinstance(item, Tensor) and item.ndim == 4 and item.is_floating_point()


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
            if not is_feature_map(items[index]):
                raise TypeError(
                    f"modules: '{tap.path}' should give feature maps (N, C, H, W), but item {index} of its output is a "
                    f"{type(items[index]).__name__}; name another module, or items as in '{tap.path}[0]'"
                )
            channels.setdefault(tap.path, {})[index] = items[index].shape[1]
    return channels
