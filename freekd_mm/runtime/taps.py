"""Taps: named places in a model whose outputs are distilled.

A tap is a module path with an optional index into what the module returns: ``'neck'``, ``'neck[1:4]'``,
``'bbox_head[0]'`` (the class scores of all levels). A module that runs several times in one forward pass gives one
level per run.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from freekd_mm.checks import did_you_mean
from freekd_mm.compat.versions import is_compiling

TAP = re.compile(r'^(?P<path>[\w.]+)(?:\[(?P<index>-?\d+|(?:-?\d+)?:(?:-?\d+)?)\])?$')


@dataclass(frozen=True)
class Tap:
    """One named place: a module path and what to take from the module's output, ``'0'`` or ``'1:4'`` for example."""

    path: str
    index: str = ''

    @classmethod
    def parse(cls, text: str) -> Tap:
        """Reads ``'path'``, ``'path[i]'`` or ``'path[i:j]'``."""
        match = TAP.match(text) if isinstance(text, str) else None
        if match is None:
            raise ValueError(f"tap should be like 'neck', 'neck[1:4]' or 'bbox_head[0]', but got {text!r}")
        return cls(match['path'], match['index'] or '')

    def __str__(self) -> str:
        return f'{self.path}[{self.index}]' if self.index else self.path

    def select(self, output: Any) -> Any:
        """Takes the indexed part of one output."""
        if not self.index:
            return output
        ends = [int(end) if end else None for end in self.index.split(':')]
        try:
            # A tensor's index would be a picture of the batch.
            if isinstance(output, Tensor) or (len(ends) > 1 and (ends[1] or 0) > len(output)):
                raise IndexError
            return output[ends[0] if len(ends) == 1 else slice(*ends)]
        except (LookupError, TypeError) as error:
            size = f'{len(output)} items' if isinstance(output, (tuple, list)) else f'a {type(output).__name__}'
            hint = f"; leave the index out, or name a submodule as in '{self.path}.0'" if size == 'a Tensor' else ''
            raise ValueError(f"tap '{self}' does not fit: the module returned {size}{hint}") from error


def parse_taps(source: str | Sequence[str]) -> tuple[Tap, ...]:
    """Reads one tap or a sequence of taps."""
    texts = [source] if isinstance(source, str) else list(source)
    if not texts:
        raise ValueError('taps should name at least one module, but got an empty list')
    return tuple(Tap.parse(text) for text in texts)


def check_module(model: nn.Module, path: str, role: str) -> nn.Module:
    """Returns the module at ``path`` or raises with the names that exist near it."""
    module = model
    for depth, name in enumerate(path.split('.')):
        children = dict(module.named_children())
        if name not in children:
            parent = '.'.join(path.split('.')[:depth])
            where = f"'{parent}'" if parent else type(model).__name__
            raise ValueError(
                f"tap '{path}' should be a module of the {role}, but {where} has no '{name}'; "
                f'available: {", ".join(children) or "nothing"}.{did_you_mean(name, children)}'
            )
        module = children[name]
    return module


def leaves(output: Any) -> list[Any]:
    """Returns what is in nested tuples, lists and dicts, in order."""
    items = list(output.values()) if isinstance(output, dict) else output
    return [leaf for item in items for leaf in leaves(item)] if isinstance(items, (tuple, list)) else [items]


def flatten(output: Any, tap: Tap) -> list[Tensor]:
    """Returns the tensors in nested tuples, lists and dicts, in order."""
    found = leaves(output)
    for leaf in found:
        if not isinstance(leaf, Tensor):
            raise TypeError(
                f"tap '{tap}' should give tensors, but the module returned a {type(leaf).__name__}; "
                'name an index or a submodule'
            )
    return found


@contextmanager
def hooks_on_forward(module: nn.Module) -> Iterator[None]:
    """While entered, a direct ``module.forward(x)`` runs the module's hooks as ``module(x)`` does."""
    # mmdet and mmseg call their heads in this way: outside of training, and mmseg also in training.
    forward, own = module.forward, module.__dict__.get('forward')
    called = False

    def before(*_: Any) -> None:
        nonlocal called
        called = True

    def hooked(*args: Any, **kwargs: Any) -> Any:
        nonlocal called
        if not called:
            return module(*args, **kwargs)
        called = False
        return forward(*args, **kwargs)

    handle = module.register_forward_pre_hook(before)
    module.forward = hooked
    try:
        yield
    finally:
        handle.remove()
        if own is None:
            del module.forward
        else:
            module.forward = own


class TapRecorder:
    """Records the outputs of all tapped modules of one model while it is entered; calls ``on_record`` after each."""

    def __init__(
        self, model: nn.Module, taps: Sequence[Tap], role: str, on_record: Callable[[], None] | None = None
    ) -> None:
        self.model, self.role, self.on_record = model, role, on_record
        for tap in taps:
            check_module(model, tap.path, role)
        #: What each module returned, one item for each run.
        self.outputs: dict[str, list[Any]] = {tap.path: [] for tap in taps}
        #: What ended the forward pass after the taps that count.
        self.failure: Exception | None = None
        #: How often each tensor had been changed in place when its module returned it, by path and identity.
        self._known: dict[tuple[str, int], int] = {}
        self._entered = ExitStack()

    def counts(self) -> dict[str, int]:
        """Returns how often each module has run since the recorder was entered."""
        return {path: len(outputs) for path, outputs in self.outputs.items()}

    def levels(self, taps: Sequence[Tap], runs: dict[str, int] | None = None) -> tuple[Tensor, ...]:
        """Returns what the taps recorded, as one tuple of levels; with ``runs`` only of so many first runs by path."""
        levels: list[Tensor] = []
        for tap in taps:
            outputs = self.outputs[tap.path]
            if not outputs:
                why = '' if self.failure is None else f': {self.failure}'
                raise RuntimeError(f"tap '{tap}' of the {self.role} was not reached in the forward pass{why}.")
            for output in outputs if runs is None else outputs[: runs[tap.path]]:
                found = flatten(tap.select(output), tap)
                if self._known and any(self._known.get((tap.path, id(x)), x._version) != x._version for x in found):
                    raise ValueError(
                        f"tap '{tap}' of the {self.role} should keep its values, but what follows changes them in "
                        'place; tap the module behind it'
                    )
                levels += found
        return tuple(levels)

    def clear(self) -> None:
        """Drops the recorded tensors, so that they do not outlive their step."""
        self.failure = None
        self._known.clear()
        for outputs in self.outputs.values():
            outputs.clear()

    def _record(self, path: str, module: nn.Module, inputs: Any, output: Any) -> None:
        self.outputs[path].append(output)
        tensors = [] if is_compiling() else [x for x in leaves(output) if isinstance(x, Tensor)]
        self._known.update({(path, id(x)): x._version for x in tensors if not x.is_inference()})
        if self.on_record is not None:
            self.on_record()

    def __enter__(self) -> TapRecorder:
        self.clear()
        for path in self.outputs:
            # The runner may have put other modules in place of some: it converts and reverts SyncBN.
            module = check_module(self.model, path, self.role)
            handle = module.register_forward_hook(partial(self._record, path))
            self._entered.callback(handle.remove)
            self._entered.enter_context(hooks_on_forward(module))
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self._entered.close()
