"""What a dumped config says, read without running it; what differs between runs."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from freekd_mm.runtime.config import is_distilled

#: Where a run wrote, and mmengine's own notes: no settings of the training.
IGNORED = ('work_dir', 'experiment_name', 'launcher', 'visualizer', 'vis_backends', 'filename', '_scope_')
MISSING = object()
MAX_TEXT = 90
#: What a table shows if a run has no value.
EMPTY = '\u2013'


def read_config(file: Path) -> dict[str, Any]:
    """Reads the assignments of a config that mmengine dumped; empty if there is none."""
    # It is parsed, not run: a work directory may come from a stranger.
    try:
        source = file.read_text(encoding='utf-8')
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # of escapes in a user's strings
            body = ast.parse(source).body
    except (OSError, SyntaxError, ValueError):
        return {}
    return {
        node.targets[0].id: _value(node.value, source)
        for node in body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }


def _value(node: ast.expr, source: str) -> Any:
    """Returns the value of a literal, of ``dict(...)``, or the source of anything else."""
    if isinstance(node, (ast.List, ast.Tuple)):
        items = [_value(item, source) for item in node.elts]
        return items if isinstance(node, ast.List) else tuple(items)
    if isinstance(node, ast.Dict):
        pairs = [(key and _value(key, source), value) for key, value in zip(node.keys, node.values)]
    elif isinstance(node, ast.Call) and getattr(node.func, 'id', '') == 'dict':
        # ``dict({'a.b': 1})``: a key that is no name.
        pairs = [*((None, given) for given in node.args), *((word.arg, word.value) for word in node.keywords)]
    else:
        try:
            return ast.literal_eval(node)
        except (ValueError, TypeError):
            return ast.get_source_segment(source, node)
    found: dict[str, Any] = {}
    for name, value in pairs:
        item = _value(value, source)
        # ``**`` of something that is not a literal: its source.
        found.update({str(name): item} if name is not None else item if isinstance(item, dict) else {'**': item})
    return found


def flatten(config: Any, path: str = '') -> dict[str, Any]:
    """Returns the leaves of a config by dotted name; lists of plain values are leaves."""
    if isinstance(config, (list, tuple)) and any(isinstance(item, dict) for item in config):
        config = dict(enumerate(config))
    if not isinstance(config, dict) or not config:
        return {path: config} if path else {}
    leaves: dict[str, Any] = {}
    for key, value in config.items():
        if key not in IGNORED:
            leaves.update(flatten(value, f'{path}.{key}' if path else str(key)))
    return leaves


def comparable(config: dict[str, Any]) -> dict[str, Any]:
    """Returns the leaves with a distilled student's model where the plain student has its own."""
    model = config.get('model')
    if isinstance(model, dict) and is_distilled(model):
        rest = {key: value for key, value in model.items() if key not in ('architecture', 'type')}
        config = {**config, 'model': model.get('architecture') or {}, 'distillation': rest}
    leaves = flatten(config)
    # The parts that a config puts together are in it twice.
    used = {name.split('.')[0] for name in leaves} & {'train_dataloader', 'val_dataloader', 'test_dataloader'}
    return {
        name: value
        for name, value in leaves.items()
        if not (used and (name.split('.')[0].endswith('_pipeline') or name.startswith('test_')))
    }


def differences(configs: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Returns the settings that are not the same in all configs, or all of a single one: name and values as text."""
    leaves = [comparable(config) for config in configs]
    rows = []
    for name in {name: None for own in leaves for name in own}:
        values = [own.get(name, MISSING) for own in leaves]
        if len(values) == 1 or any(value != values[0] for value in values):
            rows.append([name, *(EMPTY if value is MISSING else text(value) for value in values)])
    return rows


def text(value: Any) -> str:
    """Returns a value for people: absolute paths shortened, long values cut."""
    shown = value if isinstance(value, str) else repr(value)
    shown = shorten(shown) if shown is value else re.sub(r"'([^']*)'", lambda found: f"'{shorten(found[1])}'", shown)
    return shown if len(shown) <= MAX_TEXT else f'{shown[: MAX_TEXT - 1]}…'


def shorten(path: str) -> str:
    """Returns the last two parts of an absolute path, and any other text as it is."""
    parts = path.replace('\\', '/').rstrip('/').split('/')
    absolute = path.startswith(('/', '~')) or path[1:3] in (':/', ':\\')
    return f'…/{"/".join(parts[-2:])}' if absolute and len(parts) > 3 else path


def stage1(config: dict[str, Any]) -> dict[str, Any]:
    """Returns the hook that trains a prompt, with a loop and an optimizer of its own, if the config has it."""
    hooks = [hook for hook in config.get('custom_hooks') or () if isinstance(hook, dict)]
    return next((hook for hook in hooks if str(hook.get('type')).endswith('FrequencyPromptHook')), {})
