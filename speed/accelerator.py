"""An accelerator that is not there: counts the kernels that PyTorch would launch on one and the bytes that they move.

Tensors on it are fake (they have shapes and no values), so it needs no device and no time. A tensor on the wrong device
raises, and so does whatever waits for the device, like ``.item()`` or ``bool(tensor)``.

A registered device stays registered, and PyTorch then takes it for *the* accelerator, also where no tensor is on it. So
whatever uses it runs :func:`apart`.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import traceback
import types
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from freekd_mm.compat.versions import cache

NAME = 'fakecard'
#: Calls that hand out memory and launch nothing.
ALLOCATIONS = (
    'empty',
    'new_empty',
    'empty_like',
    'empty_strided',
    'new_empty_strided',
    'lift_fresh',
    'set_',
    'resize_',
)
#: Operators that launch more than one kernel: ours sends a table of addresses first.
LAUNCHES = {'haar_bands': 2}


def available() -> bool:
    """Whether this PyTorch can register a device in Python."""
    try:
        from torch.utils.backend_registration import _setup_privateuseone_for_python_backend
    except ImportError:
        return False
    return callable(_setup_privateuseone_for_python_backend)


def apart(job: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a function that runs in a fork of this process, so that this one never has the device."""

    @functools.wraps(job)
    def run(*args: Any, **kwargs: Any) -> Any:
        context = multiprocessing.get_context('fork')
        here, there = context.Pipe(duplex=False)

        def work() -> None:
            try:
                there.send((job(*args, **kwargs), None))
            except BaseException:
                there.send((None, traceback.format_exc()))

        child = context.Process(target=work)
        child.start()
        there.close()
        found, error = here.recv()
        child.join()
        if error:
            raise RuntimeError(f'in a process of its own:\n{error}')
        return found

    return run


def _register() -> None:
    if torch._C._get_privateuse1_backend_name() == NAME:
        return
    from torch.utils import backend_registration as registration

    module = types.SimpleNamespace(
        **{name: getattr(registration._DummyBackendModule(), name) for name in ('is_initialized', 'is_available')},
        current_device=lambda: 0,
        device_count=lambda: 1,
        _is_in_bad_fork=lambda: False,
        manual_seed_all=lambda seed: None,
        get_rng_state=lambda device=None: torch.empty(0, dtype=torch.uint8),
        set_rng_state=lambda state, device=None: None,
        get_amp_supported_dtype=lambda: [torch.float16, torch.bfloat16],
    )
    registration._setup_privateuseone_for_python_backend(NAME, backend_module=module)


class Launches(NamedTuple):
    """What ran on the accelerator.

    Attributes:
        kernels: Launches; one for each call that reads or writes values.
        bytes: What they read and write; a tensor that is expanded counts as what is stored of it.
        peak: The most bytes held at a time that were made meanwhile.
    """

    kernels: int
    bytes: int
    peak: int


class _Counting(TorchDispatchMode):
    """Counts what runs on the accelerator.

    Attributes:
        kernels: Launches by the name of the operator.
        bytes: As in :class:`Launches`.
        peak: As in :class:`Launches`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kernels: Counter[str] = Counter()
        self.bytes = self.peak = 0
        self._held: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operator and counts it."""
        out = func(*args, **(kwargs or {}))
        read, written = ([x for x in tree_flatten(tree)[0] if isinstance(x, Tensor)] for tree in ((args, kwargs), out))
        name = func.overloadpacket.__name__
        if func.namespace == 'prim' or not any(x.device.type == NAME for x in (*read, *written)):
            return out
        own = {x.untyped_storage()._cdata for x in read}
        self._hold([x for x in written if x.untyped_storage()._cdata not in own])
        if not (func.is_view or name in ALLOCATIONS or _is_alias(func, read, written)):
            self.kernels[name] += LAUNCHES.get(name, 1)
            self.bytes += sum({id(x): _stored(x) for x in (*read, *written)}.values())
        return out

    def _hold(self, tensors: list[Tensor]) -> None:
        for tensor in tensors:
            storage = tensor.untyped_storage()
            self._held.setdefault(storage._cdata, (StorageWeakRef(storage), storage.nbytes()))
        self._held = {key: held for key, held in self._held.items() if not held[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self._held.values()))


def _is_alias(func: Any, read: list[Tensor], written: list[Tensor]) -> bool:
    """Whether nothing but another view of an input is returned, as reshape, detach and a needless copy do."""
    if func._schema.is_mutable or not written:
        return False
    storages = {x.untyped_storage()._cdata for x in read}
    return all(x.untyped_storage()._cdata in storages for x in written)


def _stored(x: Tensor) -> int:
    count = 1
    for size, stride in zip(x.shape, x.stride()):
        count *= size if stride else 1
    return count * x.element_size()


@contextlib.contextmanager
def accelerator() -> Iterator[torch.device]:
    """Gives the device; within, all new tensors are fake."""
    _register()
    # Python that runs in a thread of autograd's own can outlive the interpreter, which then aborts.
    with _mode(), torch.autograd.set_multithreading_enabled(False):
        yield torch.device(NAME, 0)


@cache
def _mode() -> Any:
    """One mode for all: what stays on a device, as constants do, is known to the next one."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode(allow_non_fake_inputs=False)


def count(job: Callable[[], object]) -> Launches:
    """Counts a call within :func:`accelerator`; what it has made before, as it runs once for that, does not count."""
    job()
    counting = _Counting()
    with counting:
        job()
    return Launches(sum(counting.kernels.values()), counting.bytes, counting.peak)


def move(module: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    """Moves a module within :func:`accelerator`: its parameters and buffers keep their shapes and lose their values."""
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                if tensor is None:
                    continue
                fake = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
                trained = isinstance(tensor, torch.nn.Parameter)
                tensors[name] = torch.nn.Parameter(fake, tensor.requires_grad) if trained else fake
    return module
