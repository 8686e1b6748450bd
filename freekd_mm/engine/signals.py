"""A run that is asked to stop finishes its step, saves, and reports it with its exit status."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from mmengine.dist import get_rank, get_world_size
from mmengine.hooks import EMAHook, Hook
from mmengine.runner import Runner

from freekd_mm.compat import install
from freekd_mm.engine.checkpoint_hook import INTERRUPTED, POINTER
from freekd_mm.engine.exact import gradients_are_used
from freekd_mm.files import write_text
from freekd_mm.log import warn
from freekd_mm.registry import HOOKS

#: As a shell reports a process that ended by SIGTERM.
EXIT_STATUS = 128 + signal.SIGTERM


@HOOKS.register_module()
class GracefulStopHook(Hook):
    """Handles SIGTERM: finishes the iteration, writes a checkpoint, and exits with status 143.

    Schedulers send SIGTERM before they end a job. The checkpoint, ``interrupted.pth``, is one to resume from
    exactly; the next regular one replaces it. A second SIGTERM ends the process at once, but not under torchrun.

    All processes of a run stop after the same iteration, no matter when each of them got the signal.
    """

    # After the schedulers, the moving average and the regular checkpoint of the same iteration.
    priority = 'LOWEST'

    def __init__(self) -> None:
        install()
        self.asked = False
        self._previous: Any = None
        self._group: Any = None

    def before_train(self, runner: Runner) -> None:
        """Listens from here on; before, there is nothing to save."""
        if get_world_size() > 1:
            # Agreeing costs a message on the CPU, and does not wait for the GPU.
            self._group = dist.group.WORLD if dist.get_backend() == 'gloo' else dist.new_group(backend='gloo')
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._ask)
        for loop in (runner.train_loop, runner.val_loop):
            if loop is not None:
                loop.dataloader.worker_init_fn = partial(init_worker, loop.dataloader.worker_init_fn)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        # torchrun passes its own on, which a scheduler may have sent to all; it ends what does not stop.
        if 'TORCHELASTIC_RUN_ID' not in os.environ:
            self.release()

    def release(self) -> None:
        """Gives the signal back."""
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)
            self._previous = None

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Stops after the iteration, when accumulated gradients have been used."""
        asked = self.asked
        if self._group is not None:  # all must decide the same
            every = torch.tensor(int(asked))
            dist.all_reduce(every, op=dist.ReduceOp.MAX, group=self._group)
            asked = bool(every)
        if asked and gradients_are_used(runner):
            self._stop(runner, runner.iter + 1)

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Stops within an evaluation, which a resume starts again. Several processes finish it first."""
        if self.asked and self._group is None and gradients_are_used(runner):
            for hook in runner.hooks:
                if isinstance(hook, EMAHook):  # the evaluation had exchanged the weights
                    hook._swap_ema_parameters()
            self._stop(runner, runner.iter)

    def after_train(self, runner: Runner) -> None:
        """All is saved."""
        self.release()

    def _stop(self, runner: Runner, iteration: int) -> None:
        runner.save_checkpoint(
            runner.work_dir, INTERRUPTED, meta={'epoch': runner.epoch, 'iter': iteration}, by_epoch=False
        )
        path = Path(runner.work_dir) / INTERRUPTED
        if get_rank() == 0:
            write_text(path.with_name(POINTER), str(path))
        warn(f'SIGTERM: stopped after iteration {iteration}; saved {path}; continue with --resume')
        raise SystemExit(EXIT_STATUS)


def _release_in_child() -> None:
    """A process that an evaluation forks ends when its pool tells it to, and at once: the pool waits for that."""
    while isinstance(hook := getattr(signal.getsignal(signal.SIGTERM), '__self__', None), GracefulStopHook):
        hook.release()


if hasattr(os, 'register_at_fork'):  # Windows forks no processes
    os.register_at_fork(after_in_child=_release_in_child)


def init_worker(init: Callable[[int], None] | None, worker: int) -> None:
    """Keeps a data loading process alive when the whole process group is told to stop: the last steps need it."""
    if hasattr(signal, 'sigtimedwait'):  # macOS and Windows: a signal to the whole group ends the workers
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    if init is not None:
        init(worker)


def _end_with(parent: int) -> None:
    """Ends this process only when its parent terminates it."""
    while True:
        # A timeout, since a parent that was killed terminates nobody.
        sent = signal.sigtimedwait([signal.SIGTERM], 1.0)
        if (sent is not None and sent.si_pid == parent) or os.getppid() != parent:
            os._exit(0)
