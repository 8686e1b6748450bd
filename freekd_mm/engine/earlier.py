"""Moves the files of an earlier training aside when another one starts in its work directory."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log

from freekd_mm.engine.checkpoint_hook import POINTER, checkpoints_in, hook_of
from freekd_mm.prompts.prompt_file import PROMPT_FILE


def set_aside(cfg: Config) -> None:
    """Moves the files of an earlier training to ``earlier-<time>/``; an error if the new one starts from them."""
    folder = Path(cfg.work_dir)
    found = [*checkpoints_in(folder, hook_of(cfg)), *folder.glob('best_*.pth')]
    if not found:
        return
    found += [file for file in (folder / POINTER, folder / PROMPT_FILE) if file.is_file()]
    used = {Path(text).expanduser().resolve() for text in _texts(cfg._cfg_dict) if text.endswith('.pth')}
    inputs = [file for file in found if file.resolve() in used]
    if inputs:
        raise FileExistsError(
            f'a training should not start from a file that it may write over, but {inputs[0]} is named in the config: '
            'choose another folder with --work-dir, or continue with --resume'
        )
    aside = folder / f'earlier-{time.strftime("%Y%m%d_%H%M%S")}'
    aside.mkdir()
    for path in (*found, *(log.parent for log in folder.glob('*/vis_data'))):
        shutil.move(str(path), str(aside / path.name))
    record = folder / Path(cfg.filename or '').name
    if record.is_file():
        shutil.copy2(str(record), str(aside))
    print_log(f'the {len(found)} files of an earlier training are in {aside} now', 'current', logging.WARNING)


def keep_own_config(cfg: Config) -> None:
    """Lets the runner write its config under another name if the user's own file is in the work directory."""
    file = Path(cfg.filename or '')
    if cfg.filename and (Path(cfg.work_dir) / file.name).resolve() == file.resolve():
        object.__setattr__(cfg, '_filename', str(file.with_name(f'{file.stem}_run{file.suffix}')))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)
