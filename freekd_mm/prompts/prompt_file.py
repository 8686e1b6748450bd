"""Prompt files, which load as data only: what stage 1 writes and stage 2 reads."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from freekd_mm.checkpoints.loading import load_checkpoint_file
from freekd_mm.checkpoints.sources import fetch
from freekd_mm.checks import check_choice, check_positive
from freekd_mm.files import write_atomically
from freekd_mm.prompts.masks import Evidence, Grouping, num_groups

#: The one name of stage 1: the key of a config, the child of the teacher, its part of a checkpoint, and
#: its file in the work directory.
NAME = 'frequency_prompt'
PROMPT_FILE = f'{NAME}.pth'
FORMAT = f'freekd_mm.{NAME}'
#: Name of a prompt in the format of FreeKD's released checkpoints: 'mask_modules.<level>.mask_token'.
RELEASED = 'released'


@dataclass
class PromptFile:
    """A trained frequency prompt and where it belongs.

    Attributes:
        tokens: Tokens (groups, T, C) by place, a module of the teacher and an index in its output: ``'neck[0]'``.
        levels: Number of wavelet levels.
        grouping: ``'level'`` or ``'band'``.
        num_tokens: T.
        evidence: ``'band'`` or ``'magnitude'``.
        bias: Bias (groups, T) of the masks, by place; empty for none.
        teacher: Checkpoint of the teacher, as named in stage 1.
        teacher_sha256: Hash of that file.
        measured: How selective it was at the end of its training, see :mod:`freekd_mm.stage1.selectivity`.
    """

    tokens: dict[str, Tensor]
    levels: int = 3
    grouping: Grouping = 'level'
    num_tokens: int = 2
    evidence: Evidence = 'band'
    bias: dict[str, Tensor] = field(default_factory=dict)
    teacher: str = ''
    teacher_sha256: str = ''
    measured: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_positive('levels of the prompt', self.levels, integer=True)
        check_positive('num_tokens of the prompt', self.num_tokens, integer=True)
        check_choice('evidence of the prompt', self.evidence, get_args(Evidence))
        wanted = (num_groups(self.levels, self.grouping), self.num_tokens)
        if not self.tokens:
            raise ValueError('a prompt should hold the tokens of at least one level, but got none')
        for place, bias in self.bias.items():
            if place not in self.tokens or not isinstance(bias, Tensor) or tuple(bias.shape) != wanted:
                raise ValueError(
                    f'bias should have one entry of shape {wanted} for each of {", ".join(self.tokens)}, but got '
                    f'{tuple(bias.shape) if isinstance(bias, Tensor) else type(bias).__name__} for {place}'
                )
        for place, tokens in self.tokens.items():
            if not isinstance(tokens, Tensor) or tokens.ndim != 3 or tuple(tokens.shape[:2]) != wanted:
                got = tuple(tokens.shape) if isinstance(tokens, Tensor) else type(tokens).__name__
                raise ValueError(
                    f'tokens of {place} should be of shape {(*wanted, "C")} for {self.levels} wavelet levels, grouping '
                    f'{self.grouping!r} and {self.num_tokens} tokens, but got {got}'
                )


def prompt_content(prompt: PromptFile) -> dict[str, Any]:
    """Returns a prompt as a dict of tensors on the CPU, strings and numbers."""
    content = {'format': FORMAT, **vars(prompt)}
    for name in ('tokens', 'bias'):
        content[name] = {place: value.detach().cpu().clone() for place, value in content[name].items()}
    return content


def save_prompt(prompt: PromptFile, path: str | os.PathLike) -> Path:
    """Writes a prompt file; a reader never sees half of it.

    Args:
        prompt: The prompt.
        path: The file to write.
    """
    return write_atomically(path, lambda part: torch.save(prompt_content(prompt), part))


def use_prompt(cfg: Any) -> Path | None:
    """Lets a config with ``frequency_prompt = dict(file=...)`` name that file by its full path, to run from anywhere.

    It is looked for beside the config, in the folders above it, and in the current folder; None if it is nowhere.
    """
    file: Any = (cfg.get(NAME) or {}).get('file')
    folders = [*(Path(cfg.filename).absolute().parents if cfg.filename else ()), Path.cwd()] if file else []
    found = next((folder / file for folder in folders if (folder / file).is_file()), None)
    if found is not None:
        _rename(cfg.model, file, str(found))
    return found


def _rename(part: Any, old: str, new: str) -> None:
    """Changes a text in a config, in place, so that what the config imports stays as it is written."""
    for key, value in part.items() if isinstance(part, dict) else enumerate(part):
        if isinstance(value, (dict, list, tuple)):
            _rename(value, old, new)
        elif isinstance(value, str) and value == old:
            part[key] = new


def new_prompt_file(cfg: Any) -> Path:
    """Returns where a new prompt of ``frequency_prompt = dict(file=...)`` goes: to where every later start finds it."""
    # That is below the current folder if the config is below it too, else beside the config. Nothing is written into an
    # installed package or a folder that is read-only: then it is the current folder.
    current = Path.cwd()
    beside = Path(cfg.filename).absolute().parent if cfg.filename else current
    is_package = any(part in ('site-packages', 'dist-packages') for part in beside.parts)
    is_found = current in (beside, *beside.parents)
    return (current if is_found or is_package or not os.access(beside, os.W_OK) else beside) / cfg[NAME]['file']


def load_prompt(source: str | os.PathLike) -> PromptFile:
    """Loads a prompt from a file or URL without running code from it.

    Reads our files, and FreeKD's released format: ``mask_modules.{i}.mask_token`` of shape (levels + 1, T, C), in
    a state dict or inside a checkpoint, with or without a prefix before ``mask_modules``.

    Args:
        source: A file or URL.
    """
    path = Path(fetch(str(source)))
    if not path.is_file():
        raise FileNotFoundError(
            f'prompt should be an existing file, but got {str(source)!r}. tools/train.py makes it first if a config '
            f'has {NAME} = dict(cfg_path=..., file=...); to train only a prompt, run it with the config of stage 1'
        )
    content = load_checkpoint_file(path)
    content = content if isinstance(content, Mapping) else {}
    # A training checkpoint of stage 1 holds the same beside the optimizer.
    content = content.get(NAME, content)
    return _read_ours(content, source) if content.get('format') == FORMAT else _read_released(content, source)


def _read_ours(content: Mapping[str, Any], source: Any) -> PromptFile:
    names = PromptFile.__dataclass_fields__
    missing = [name for name in names if name not in content]
    if missing:
        raise ValueError(f'{source} should hold {", ".join(names)}, but has no {", ".join(missing)}')
    return PromptFile(**{name: content[name] for name in names})


def _read_released(content: Mapping[str, Any], source: Any) -> PromptFile:
    state, tokens = content.get('state_dict', content), {}
    for key, value in state.items():
        parts = str(key).split('.')
        if parts[-1] == 'mask_token' and len(parts) > 2 and parts[-3] == 'mask_modules' and parts[-2].isdigit():
            tokens[int(parts[-2])] = value
    if not tokens:
        shown = ', '.join(map(str, list(state)[:6])) or 'nothing'
        raise ValueError(
            f"{source} should be a prompt file of freekd_mm or hold 'mask_modules.<level>.mask_token' as FreeKD's "
            f'released checkpoints do, but holds {shown}{", ..." if len(state) > 6 else ""}'
        )
    first = tokens[min(tokens)]
    if not isinstance(first, Tensor) or first.ndim != 3 or first.shape[0] < 2:
        raise ValueError(f"{source}: 'mask_token' should be a tensor of shape (levels + 1, T, C)")
    places = {f'{RELEASED}[{index}]': tokens[index] for index in sorted(tokens)}
    return PromptFile(places, levels=first.shape[0] - 1, num_tokens=first.shape[1])
