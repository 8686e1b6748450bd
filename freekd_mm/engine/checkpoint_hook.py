"""Safe checkpoints: old ones go only after the new one is safe, and a resume takes the newest whole one."""

from __future__ import annotations

import os
import re
import zipfile
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.dist import get_world_size, is_main_process
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner

from freekd_mm.checkpoints.loading import UntrustedCheckpointError, load_checkpoint_file
from freekd_mm.checkpoints.sources import fetch
from freekd_mm.checks import check_file
from freekd_mm.compat import install
from freekd_mm.files import write_text
from freekd_mm.log import warn
from freekd_mm.registry import HOOKS

#: Names the last checkpoint, as in mmengine.
POINTER = 'last_checkpoint'
#: The checkpoint of a run that was asked to stop.
INTERRUPTED = 'interrupted.pth'
NAMES = ('epoch_{}.pth', 'iter_{}.pth')
REQUIRED = ('meta', 'state_dict', 'message_hub')


class SafeCheckpointMixin:
    """The order for a hook like mmengine's: write, point to the new file, and only then remove old ones."""

    def before_run(self: Any, runner: Runner) -> None:
        """Checkpoints are written whole from here on."""
        install()
        super().before_run(runner)  # type: ignore[misc]

    def before_train(self: Any, runner: Runner) -> None:
        """After a resume, the checkpoint that it started from is the last one."""
        super().before_train(runner)  # type: ignore[misc]
        last = runner.message_hub.runtime_info.get('last_ckpt')
        if self.last_ckpt is None and last and self.file_backend.isfile(last):
            self.last_ckpt = last
        # The best one of another folder is not this run's to remove.
        here = os.path.abspath(self.out_dir)
        own = lambda path: path if path and os.path.dirname(os.path.abspath(path)) == here else None  # noqa: E731
        self.best_ckpt_path = own(getattr(self, 'best_ckpt_path', None))
        self.best_ckpt_path_dict = {k: own(path) for k, path in getattr(self, 'best_ckpt_path_dict', {}).items()}

    def _save_checkpoint_with_step(self: Any, runner: Runner, step: int, meta: dict) -> None:
        outdated = self._outdated(step)
        runner.message_hub.update_info('keep_ckpt_ids', list(getattr(self, 'keep_ckpt_ids', [])))
        name = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir,
            name,
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        if is_main_process():
            write_text(Path(runner.work_dir) / POINTER, self.last_ckpt)
            _remove(self.file_backend, outdated)
            (Path(runner.work_dir) / INTERRUPTED).unlink(missing_ok=True)

    def _outdated(self: Any, step: int) -> list[str]:
        """Returns the checkpoints that are more than ``max_keep_ckpts``, and remembers the new one."""
        if self.max_keep_ckpts <= 0 or (self.keep_ckpt_ids and self.keep_ckpt_ids[-1] == step):
            return []
        kept = [number for number in self.keep_ckpt_ids if number != step]
        gone = kept[: max(len(kept) + 1 - self.max_keep_ckpts, 0)]
        self.keep_ckpt_ids = deque([*kept[len(gone) :], step], self.max_keep_ckpts)
        return [self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(number)) for number in gone]

    def _save_best_checkpoint(self: Any, runner: Runner, metrics: dict) -> None:
        backend, outdated = self.file_backend, []  # type: ignore[var-annotated]
        # Not a copy, which a FileClient makes of nothing but itself.
        self.file_backend = type('Backend', (), {'__getattr__': lambda _, name: getattr(backend, name)})()
        self.file_backend.remove = self.file_backend.rmtree = outdated.append
        try:
            super()._save_best_checkpoint(runner, metrics)  # type: ignore[misc]
        finally:
            self.file_backend = backend
        kept = [getattr(self, 'best_ckpt_path', None), *getattr(self, 'best_ckpt_path_dict', {}).values()]
        if is_main_process():
            _remove(backend, [path for path in outdated if path not in kept])


def _remove(backend: Any, paths: Sequence[str]) -> None:
    for path in paths:
        if backend.isfile(path):
            backend.remove(path)
        elif backend.isdir(path):
            backend.rmtree(path)


@HOOKS.register_module()
class SafeCheckpointHook(SafeCheckpointMixin, CheckpointHook):
    """mmengine's ``CheckpointHook``, safe at every moment; ``tools/train.py`` uses it in every training."""


def make_safe(runner: Runner) -> None:
    """Makes the runner's checkpoint hooks safe, also those of a user's own class."""
    for hook in runner.hooks:
        if isinstance(hook, CheckpointHook) and not isinstance(hook, SafeCheckpointMixin):
            hook.__class__ = type(f'Safe{type(hook).__name__}', (SafeCheckpointMixin, type(hook)), {})


@dataclass(frozen=True)
class ResumePoint:
    """A checkpoint that can be resumed from."""

    path: str
    epoch: int
    iteration: int
    seed: int | None = None
    batches: int = 0  # of the epoch, that were done
    evaluated: bool = False  # whether the evaluation that follows was done

    @classmethod
    def of(cls, content: dict, path: str = '') -> ResumePoint:
        """Reads it from the content of a checkpoint."""
        meta = content['meta']
        place = meta.get('freekd_mm') or {}
        # As many pictures are done by another number of processes in other batches.
        world = get_world_size()
        batches = int(place.get('batches', 0)) * int(place.get('processes', world)) // world
        return cls(path, int(meta['epoch']), int(meta['iter']), meta.get('seed'), batches, bool(place.get('evaluated')))


def read_resume_point(path: str | os.PathLike, required: Sequence[str] = REQUIRED) -> ResumePoint:
    """Reads a whole training checkpoint and returns what a resume needs; an error if it is damaged or another file."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged:
            raise RuntimeError(f'{path} is damaged: the checksum of {damaged} is wrong')
    content = load_checkpoint_file(path)
    missing = [key for key in required if not isinstance(content, dict) or key not in content]
    if missing:
        raise ValueError(
            f'{path} should be a checkpoint written in training, but has no {", ".join(missing)}. To start a training '
            'with its weights alone, set load_from'
        )
    return ResumePoint.of(content, str(path))


def find_resume_point(resume: str, cfg: Mapping[str, Any]) -> ResumePoint | None:
    """Returns the checkpoint to continue from: the named one, or with ``'auto'`` the newest whole one, None without."""
    if resume != 'auto':
        named = fetch(resume)
        check_file('--resume', named)
        return read_resume_point(named, (*REQUIRED, 'optimizer'))
    broken = []
    for path in filter(None, dict.fromkeys([last_checkpoint(Path(cfg['work_dir'])), *checkpoints_of(cfg)])):
        try:
            point = read_resume_point(path)
        except UntrustedCheckpointError:
            raise
        except (OSError, RuntimeError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            broken.append(str(path))
            warn(f'{path} cannot be resumed from, looking for an older one: {error}')
            continue
        if broken:
            warn(f'continuing from {path} instead of {", ".join(broken)}')
        return point
    if broken:
        raise RuntimeError(
            f'--resume should find a whole checkpoint in {cfg["work_dir"]}, but none of {", ".join(broken)} is. Remove '
            'them to start from scratch, or name another: --resume FILE'
        )
    return None


def checkpoints_of(cfg: Mapping[str, Any]) -> list[Path]:
    """Returns the checkpoints of a config's run, from the last written on."""
    # Times count, not numbers: the folder may hold files of an earlier run that got further.
    names = {*NAMES, INTERRUPTED, _hook(cfg).get('filename_tmpl') or NAMES[0]}
    patterns = [re.sub(r'\\{[^}]*\\}', r'\\d+', re.escape(name)) for name in names]
    found = {
        file
        for folder in checkpoint_folders(cfg)
        for file in folder.glob('*')
        if file.is_file() and any(re.fullmatch(pattern, file.name) for pattern in patterns)
    }
    return sorted(found, key=lambda file: file.stat().st_mtime_ns, reverse=True)


def checkpoint_folders(cfg: Mapping[str, Any]) -> list[Path]:
    """Returns where the checkpoints of a config's run are."""
    work_dir, out_dir = Path(cfg['work_dir']).absolute(), _hook(cfg).get('out_dir')
    return list(dict.fromkeys([work_dir, *([(Path(out_dir) / work_dir.name).absolute()] if out_dir else [])]))


def _hook(cfg: Mapping[str, Any]) -> dict:
    return (cfg.get('default_hooks') or {}).get('checkpoint') or {}


def last_checkpoint(work_dir: Path) -> Path | None:
    """Returns the checkpoint that is pointed to, also if the work directory was moved since; None without one."""
    pointer = work_dir / POINTER
    named = Path(pointer.read_text(encoding='utf-8').strip()) if pointer.is_file() else work_dir
    return next((file for file in (work_dir.absolute() / named.name, named) if file.is_file()), None)
