"""The configs that ``tools/make_config.py`` writes, as text, in the style of the config that they inherit."""

from __future__ import annotations

import os
from pathlib import Path
from pprint import pformat
from typing import Any

from mmengine.config import Config

from freekd_mm.compat.versions import configs_know_their_file, zip_equal
from freekd_mm.datasets.unlabelled import find_pictures, shared_pipeline
from freekd_mm.runtime.config import load_config
from freekd_mm.runtime.foreign import LIBRARIES
from freekd_mm.runtime.probe import SMALL, Size
from freekd_mm.runtime.wiring import alignment, size
from freekd_mm.text import table
from freekd_mm.wizard.methods import Wiring, method_hooks


class Expression(str):
    """Code that gives a value, among values that are written as they are."""

    __repr__ = str.__str__


class Style:
    """How a config names its base, the base's variables, and files: by imports or not, as the base does."""

    def __init__(self, base: str, out: Path) -> None:
        self.base, self.folder = base, out.resolve().parent
        # Configs of imports (``with read_base():``) inherit only from configs of imports, and only these inherit them.
        self.imports = '::' not in base and Config._is_lazy_import(base)

    def header(self) -> str:
        """Returns the lines that inherit the base."""
        if not self.imports:
            name = self.base if '::' in self.base else os.path.relpath(Path(self.base).resolve(), self.folder)
            return f'_base_ = [{name!r}]\n'
        path = Path(os.path.relpath(Path(self.base).resolve().with_suffix(''), self.folder))
        names = [part for part in path.parts if part != '..']
        if not all(name.isidentifier() for name in names):
            raise ValueError(
                f'{self.base} uses read_base, so the new config has to import it: its path from {self.folder} '
                f'should be made of Python names, but is {path}; write -o into the same folder'
            )
        dots = '.' * (1 + len(path.parts) - len(names))
        return (
            'from mmengine.config import read_base\n\nwith read_base():\n'
            f'    from {dots}{".".join(names)} import *  # noqa: F403\n'
        )

    def variable(self, name: str) -> str:
        """Returns how a variable of the base is written."""
        return name if self.imports else f'{{{{_base_.{name}}}}}'

    def hooks(self) -> str:
        """Returns the base's hooks, to be put before others in a list."""
        if not load_config(self.base).get('custom_hooks'):
            return ''
        return '*custom_hooks, ' if self.imports else '*_base_.custom_hooks, '

    def file(self, path: str) -> Expression:
        """Returns how a file is named: relative to the new config, so that both can be moved together."""
        if '::' in path or path.startswith(('http://', 'https://')):
            return Expression(repr(path))
        whole = Path(path).expanduser().resolve()
        # mmengine puts the folder between the quotes as it is.
        if (self.imports and not configs_know_their_file()) or {'"', "'"} & set(str(self.folder)):
            return Expression(repr(str(whole)))
        relative = os.path.relpath(whole, self.folder)
        if self.imports:
            return Expression(f'(__file__.rpartition({"/"!r})[0] or {"."!r}) + {f"/{relative}"!r}')
        return Expression(repr('{{ fileDirname }}/' + relative))


def prompt_source(style: Style, checkpoint: str, modules: str, work_dir: Path, options: dict[str, Any]) -> str:
    """Returns the config of stage 1."""
    given = {key: value for key, value in options.items() if value is not None}
    hook = {'type': 'freekd_mm.FrequencyPromptHook', 'modules': modules, **given}
    return f"""# FreeKD, stage 1: the frequency prompt of the teacher. Written by tools/make_config.py; edit freely.
{style.header()}
load_from = {style.file(checkpoint)}
custom_hooks = [{style.hooks()}{source(hook, 0)}]
work_dir = {str(work_dir)!r}
"""


def distill_source(
    style: Style,
    teacher: dict[str, str],
    method: str,
    wiring: Wiring,
    entries: dict[str, dict],
    stage1: Path | None,
    file: str,
    image: Size,
    inherit: list[str],
    unlabelled: str | os.PathLike | None = None,
) -> str:
    """Returns the config of the distillation; stage 1 runs first if its config is given."""
    stage = ''
    if stage1 is not None:
        stage = f"""
# Stage 1 runs first if its file does not exist yet.
frequency_prompt = dict(cfg_path={style.file(str(stage1))}, file={file!r})
"""
    hooks = ', '.join(source(hook, 0) for hook in method_hooks(method, wiring))
    schedule = f'\ncustom_hooks = [{style.hooks()}{hooks}]\n' if hooks else ''
    named = {k: repr(v) if k in LIBRARIES and not Path(v).exists() else style.file(v) for k, v in teacher.items()}
    options = '\n'.join(f'        {key}={value},' for key, value in named.items())
    body = ',\n'.join(f'        {name}={source(entry, 8)}' for name, entry in entries.items())
    start = f"    # Start with the teacher's weights.\n    inherit={inherit!r},\n" if inherit else ''
    data = mixed_source(style, unlabelled) if unlabelled is not None else ''
    compared = any(entry['student'] == wiring.features_s for entry in entries.values())
    levels = f'# Features, as a {size(image)} image gives them:\n{_levels(wiring)}\n' if compared else ''
    probe = f'    probe_size={image},\n' if image != (SMALL, SMALL) else ''
    return f"""# Distils the student of the base config with {method}. Written by tools/make_config.py; edit freely.
{style.header()}
{levels}{stage}
model = dict(
    _delete_=True,
    type='freekd_mm.DistilledModel',
    architecture={style.variable('model')},
    teacher=dict(
{options}
    ),
{start}{probe}    distill=dict(
{body},
    ),
)
{schedule}{data}""".replace('    _delete_=True,\n' if style.imports else '\0', '')


def mixed_source(style: Style, folder: str | os.PathLike) -> str:
    """Returns the data loader that has pictures without labels between the labelled ones."""
    find_pictures(folder)
    loader = load_config(style.base).get('train_dataloader')
    if not loader:
        raise ValueError(f'{style.base} should have a train_dataloader for pictures without labels, but has none')
    shared_pipeline(loader)
    replaces = '' if style.imports else '_delete_=True, '
    sampler = "type='freekd_mm.MixedBatchSampler', ratio=1.0"
    if loader.get('batch_sampler'):
        sampler = f'{replaces}{sampler}, labelled={style.variable("train_dataloader.batch_sampler")}'
    # A loader takes it only without a batch sampler.
    drop = '    drop_last=False,\n' if loader.get('drop_last') else ''
    sampler += ', drop_last=True' if drop else ''
    start = 'train_dataloader.update(' if style.imports else 'train_dataloader = dict('
    return f"""
# Pictures without labels: ratio batches of them for each labelled batch. They are distilled and have no task loss.
{start}
    dataset=dict(
        {replaces}type='freekd_mm.WithUnlabelled',
        dataset={style.variable('train_dataloader.dataset')},
        unlabelled=dict(folder={style.file(str(folder))}),
    ),
    batch_sampler=dict({sampler}),
{drop})
"""


def _levels(wiring: Wiring) -> str:
    """Returns what is compared with what as comments."""
    rows = [
        [str(index), size(teacher), size(student), alignment(student, teacher)]
        for index, (student, teacher) in enumerate(zip_equal(wiring.shapes_s, wiring.shapes_t))
    ]
    header = ['level', f'teacher {wiring.features_t}', f'student {wiring.features_s}', 'the student is']
    comment = '\n'.join(f'#   {line}' for line in table(rows, header).splitlines())
    return comment if wiring.head is None else f'{comment}\n{_levels(wiring.head)}'


def source(value: Any, indent: int) -> str:
    """Returns a nested dict as ``dict(key=value, ...)``."""
    if not isinstance(value, dict):
        return pformat(value, width=100)
    one_line = 'dict(' + ', '.join(f'{key}={source(item, 0)}' for key, item in value.items()) + ')'
    if len(one_line) + indent < 110:
        return one_line
    pad = ' ' * (indent + 4)
    items = ''.join(f'{pad}{key}={source(item, indent + 4)},\n' for key, item in value.items())
    return f'dict(\n{items}{" " * indent})'
