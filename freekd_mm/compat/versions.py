"""What differs between the versions of Python and PyTorch that are supported, each with the version that ends it.

Standard library at import: this module stands before every other room.
"""

from __future__ import annotations

import _compat_pickle
import collections
import functools
import importlib.metadata
import inspect
import itertools
import pickle
import types
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import torch

#: The oldest PyTorch that freekd_mm works with.
OLDEST_TORCH = (1, 13)

# Python 3.9 has it.
cache = functools.lru_cache(maxsize=None)

_END = object()


def installed_version(distribution: str) -> str:
    """Returns the version of a distribution without importing it; empty where there is none."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ''


def installed_torch() -> tuple[int, int] | None:
    """Returns the first two numbers of PyTorch's version without importing it; None where there is none."""
    found = installed_version('torch').split('.')[:2]
    return (int(found[0]), int(found[1])) if len(found) == 2 and all(map(str.isdigit, found)) else None


def resumed_loop_walks() -> bool:
    """Whether an iteration-based loop that resumes first takes all batches up to its place: since mmengine 0.10.3."""
    from mmengine import __version__
    from mmengine.utils import digit_version

    return digit_version(__version__) >= digit_version('0.10.3')


def configs_know_their_file() -> bool:
    """Whether ``__file__`` is known in a config with ``read_base``: in mmengine 0.8 it is not."""
    from mmengine.config import config

    return "'__file__'" in inspect.getsource(config)


def zip_equal(*iterables: Iterable[Any]) -> Iterator[Any]:
    """Yields tuples as ``zip(..., strict=True)`` of Python 3.10 does: other lengths are a ValueError."""
    for items in itertools.zip_longest(*iterables, fillvalue=_END):
        if any(item is _END for item in items):
            raise ValueError(f'zip_equal() should get iterables of one length, but one of {len(items)} is shorter')
        yield items


def remove_prefix(text: str, prefix: str) -> str:
    """Returns ``text`` without ``prefix`` in front; ``str.removeprefix`` of Python 3.9."""
    return text[len(prefix) :] if prefix and text.startswith(prefix) else text


@cache
def torch_at_least(major: int, minor: int) -> bool:
    """Whether PyTorch is this version or a newer one."""
    import torch

    here = torch.__version__.split('.')
    return (int(here[0]), int(here[1])) >= (major, minor)


def uncompiled(function: Any) -> Any:
    """Keeps a function out of ``torch.compile`` of PyTorch 2.1."""
    # Code that writes into buffers, or has faster kernels of its own, runs as it is within a compiled model.
    import torch

    # torch.compiler.disable would import the compiler now, this one does it at the first call.
    return torch._disable_dynamo(function) if hasattr(torch, '_disable_dynamo') else function


def is_compiling() -> bool:
    """Whether torch.compile or torch.export traces the code; ``torch.compiler.is_compiling`` of PyTorch 2.3."""
    # Traced code must not branch on a size or write into slices; the compiler fuses the steps of plain formulas.
    import torch

    if hasattr(torch, 'compiler') and hasattr(torch.compiler, 'is_compiling'):
        return torch.compiler.is_compiling()
    return hasattr(torch, '_dynamo') and torch._dynamo.is_compiling()


def is_autocast_enabled(device_type: str) -> bool:
    """Whether autocast is on for a device type; the argument of ``torch.is_autocast_enabled`` of PyTorch 2.4."""
    import torch

    if torch_at_least(2, 4):
        return torch.is_autocast_enabled(device_type)
    return torch.is_autocast_cpu_enabled() if device_type == 'cpu' else torch.is_autocast_enabled()


def copy_all(targets: list[torch.Tensor], sources: list[torch.Tensor]) -> None:
    """Copies tensors into others of their shapes, if there are any; ``torch._foreach_copy_`` of PyTorch 2.1."""
    import torch

    if targets and hasattr(torch, '_foreach_copy_'):
        torch._foreach_copy_(targets, sources)
    else:
        for target, source in zip_equal(targets, sources):
            target.copy_(source)


def load_as_data(path: Any, map_location: Any, allowed: Mapping[str, Any]) -> Any:
    """Loads a checkpoint without running code from it; ``safe_globals`` with names of PyTorch 2.6.

    The file may name what PyTorch allows and ``allowed``, ``{'module.name': class or function}``; else an
    ``UnpicklingError`` is raised.
    """
    import torch

    if torch_at_least(2, 6):
        with torch.serialization.safe_globals([(value, name) for name, value in allowed.items()]):
            return torch.load(path, map_location=map_location, weights_only=True)
    if zipfile.is_zipfile(path) and any(name.endswith('/constants.pkl') for name in zipfile.ZipFile(path).namelist()):
        raise RuntimeError('it is TorchScript')
    # In place of PyTorch's own, which has a fixed list. pickle_module= would do, but PyTorch 1.13 ignores it.
    serialization: Any = torch.serialization
    strict = serialization._weights_only_unpickler
    classes = (set, complex, bytearray, collections.Counter, torch.device)
    known: dict[str, Any] = {f'{item.__module__}.{item.__name__}': item for item in classes}
    known.update({str(item): item for item in vars(torch).values() if isinstance(item, torch.dtype)})
    try:
        serialization._weights_only_unpickler = _data_pickle({**strict._get_allowed_globals(), **known, **allowed})
        return torch.load(path, map_location=map_location, weights_only=True)
    finally:
        serialization._weights_only_unpickler = strict


def _data_pickle(allowed: Mapping[str, Any]) -> Any:
    """Returns a module like ``pickle`` that knows ``allowed`` only."""
    # The one that is written in Python: the other one cannot be told whose state a file may set.
    base: Any = vars(pickle)['_Unpickler']

    class Unpickler(base):
        dispatch: ClassVar[dict[int, Any]] = dict(base.dispatch)

        def find_class(self, module: str, name: str) -> Any:
            # PyTorch saves with protocol 2, in which getattr is of the module __builtin__.
            module, name = _compat_pickle.NAME_MAPPING.get((module, name), (module, name))
            module = _compat_pickle.IMPORT_MAPPING.get(module, module)
            if f'{module}.{name}' not in allowed:
                raise pickle.UnpicklingError(f'Unsupported global: GLOBAL {module}.{name}')
            return allowed[f'{module}.{name}']

        def load_build(self) -> None:
            owner = type(self.stack[-2])
            if not any(owner is known for known in allowed.values()):
                raise pickle.UnpicklingError(f'Unsupported class {owner.__module__}.{owner.__name__}')
            super().load_build()

        dispatch[pickle.BUILD[0]] = load_build

    def load(file: Any, **options: Any) -> Any:
        return Unpickler(file, **options).load()

    return types.SimpleNamespace(Unpickler=Unpickler, load=load, __name__=__name__)
