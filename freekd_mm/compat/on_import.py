"""Runs something when a module is imported: what mends a module need not import it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Callable

Action = Callable[[ModuleType], None]


def when_imported(name: str, action: Action) -> None:
    """Runs ``action(module)`` when the module is imported, before anyone sees it; at once when it is there.

    An action is run once, however often it is given; an equal one is the same.
    """
    if name in sys.modules:
        action(sys.modules[name])
        return
    finder = next((finder for finder in sys.meta_path if isinstance(finder, ImportFinder)), None)
    if finder is None:
        finder = ImportFinder()
        sys.meta_path.insert(0, finder)
    actions = finder.actions.setdefault(name, [])
    if action not in actions:
        actions.append(action)


class ImportFinder(MetaPathFinder):
    """Answers for the modules that someone waits for; leaves every other import alone."""

    def __init__(self) -> None:
        self.actions: dict[str, list[Action]] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Finds the module as usual and puts a loader that runs the actions around its loader."""
        if fullname not in self.actions:
            return None
        # All the others, not the usual one alone: editable installations bring finders of their own.
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(fullname, path, target)
            if spec is not None and spec.loader is not None:
                spec.loader = _ActingLoader(spec.loader, self.actions[fullname])
                return spec
        return None


class _ActingLoader(Loader):
    """Loads the module as it is, then runs the actions."""

    def __init__(self, loader: Loader, actions: Sequence[Action]) -> None:
        self.loader, self.actions = loader, actions

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        for action in self.actions:
            action(module)
