"""Where a teacher takes prompts: the outputs of its modules, found with a dummy image."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, cast

from torch import Tensor, nn

from freekd_mm.runtime.probe import Size, first_accepted, probe_model
from freekd_mm.runtime.taps import check_module, parse_taps


def as_items(output: Any) -> list[Any]:
    """Returns a module's output as a list of levels."""
    return list(output) if isinstance(output, (tuple, list)) else [output]


def is_feature_map(item: Any) -> bool:
    """Tells whether an item of an output can take a prompt: a floating-point (N, C, H, W)."""
    return isinstance(item, Tensor) and item.ndim == 4 and item.is_floating_point()


def find_channels(model: nn.Module, modules: Sequence[str], size: Size | None) -> dict[str, dict[int, int]]:
    """Returns the channels of every output that gets a prompt, by module path, then by index in its output.

    Args:
        model: The teacher.
        modules: Its modules, see :class:`freekd_mm.stage1.FrequencyPromptHook`.
        size: Height and width of the dummy image; None for one that the model takes.
    """
    taps = parse_taps(modules)
    for tap in taps:
        check_module(model, tap.path, 'teacher')

    def probe(size: Size) -> OutputRecorder:
        recorder = OutputRecorder(model, [tap.path for tap in taps])
        probe_model(model, cast(Any, recorder), size, training=True)
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
                f"modules: '{tap.path}' should run once in a forward pass, so that each level has a prompt of its own, "
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


class OutputRecorder:
    """Keeps the outputs of some modules while it is entered; serves the probe of the distillation runtime."""

    role = 'teacher'

    def __init__(self, model: nn.Module, modules: Sequence[str]) -> None:
        self.model = model
        self.outputs: dict[str, list[Any]] = {module: [] for module in modules}
        self._handles: list[Any] = []

    def counts(self) -> dict[str, int]:
        """Returns how often each module has run."""
        return {module: len(outputs) for module, outputs in self.outputs.items()}

    def __enter__(self) -> OutputRecorder:
        for module, outputs in self.outputs.items():

            def keep(_: nn.Module, args: Any, output: Any, outputs: list[Any] = outputs) -> None:
                outputs.append(output)

            self._handles.append(self.model.get_submodule(module).register_forward_hook(keep))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
