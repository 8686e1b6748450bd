"""What a dumped config says, read without running it; what differs between runs."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from freekd_mm.runtime.config import is_distilled

#: Where a run wrote, and what mmengine notes for itself: no setting of the training.
IGNORED = ('work_dir', 'experiment_name', 'launcher', 'visualizer', 'vis_backends', 'filename', '_scope_')
MISSING = object()
MAX_TEXT = 90
#: What a table shows where a run has no value.
EMPTY = '\u2013'


def read_config(file: Path) -> dict[str, Any]:
    """Reads the assignments of a config that mmengine dumped; empty where there is none.

    It is parsed, not run: a folder of a stranger may lie among the work directories.
    """
    if not file.is_file():
        return {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # of escapes in a user's strings
            body = ast.parse(file.read_text(encoding='utf-8')).body
    except (SyntaxError, ValueError):
        return {}
    config: dict[str, Any] = {}
    for node in body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            config[node.targets[0].id] = _value(node.value)
    return config


def _value(node: ast.expr) -> Any:
    """Returns the value of a literal, of ``dict(...)``, or the source of anything else."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == 'dict' and not node.args:
        merged: dict[Any, Any] = {}
        for keyword in node.keywords:
            value = _value(keyword.value)
            merged.update({keyword.arg: value} if keyword.arg else value if isinstance(value, dict) else {})
        return merged
    if isinstance(node, ast.Dict):
        keys = [ast.unparse(key) if key is None else _value(key) for key in node.keys if key is not None]
        return dict(zip(map(str, keys), map(_value, node.values)))
    if isinstance(node, (ast.List, ast.Tuple, ast.Set)):
        return [_value(item) for item in node.elts]
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError):
        return ast.unparse(node)


def flatten(config: Any, path: str = '') -> dict[str, Any]:
    """Returns the leaves of a config by dotted name; lists of plain values are leaves."""
    items: Any = None
    if isinstance(config, dict):
        items = config.items()
    elif isinstance(config, list) and any(isinstance(item, dict) for item in config):
        items = ((str(index), item) for index, item in enumerate(config))
    if items is None or not config:
        return {path: config} if path else {}
    leaves: dict[str, Any] = {}
    for key, value in items:
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
    # The pieces that a config puts together stand in it twice.
    used = {name.split('.')[0] for name in leaves} & {'train_dataloader', 'val_dataloader', 'test_dataloader'}
    return {
        name: value
        for name, value in leaves.items()
        if not (used and (name.split('.')[0].endswith('_pipeline') or name.startswith('test_')))
    }


def differences(configs: Sequence[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """Returns the settings that are not the same in all configs: name, and the value of each as text."""
    leaves = [comparable(config) for config in configs]
    names = list({name: None for own in leaves for name in own})
    rows = []
    for name in names:
        values = [own.get(name, MISSING) for own in leaves]
        if any(value != values[0] for value in values[1:]):
            rows.append((name, [EMPTY if value is MISSING else text(value) for value in values]))
    return rows


def text(value: Any) -> str:
    """Returns a value for people: paths without where the machine keeps them, long ones cut."""
    shown = shorten(value) if isinstance(value, str) else repr(_shorten_all(value))
    return shown if len(shown) <= MAX_TEXT else f'{shown[: MAX_TEXT - 1]}…'


def _shorten_all(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _shorten_all(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_shorten_all(item) for item in value)
    return shorten(value) if isinstance(value, str) else value


def shorten(path: str) -> str:
    """Returns the last two parts of an absolute path, and any other text as it is."""
    parts = path.replace('\\', '/').rstrip('/').split('/')
    absolute = path.startswith(('/', '~')) or path[1:3] in (':/', ':\\')
    return f'…/{"/".join(parts[-2:])}' if absolute and len(parts) > 3 else path


def facts(config: dict[str, Any]) -> dict[str, str]:
    """Returns the settings that a reader asks for first; those that the config has."""
    found = comparable(config)
    optimizer = config.get('optim_wrapper') or {}
    own = optimizer.get('optimizer') or {}
    train, loader = config.get('train_cfg') or {}, config.get('train_dataloader') or {}
    length = next((f'{train[key]} {unit}' for key, unit in LENGTHS.items() if train.get(key)), None)
    prompt = next((hook for hook in config.get('custom_hooks') or [] if _is_prompt_hook(hook)), None)
    if prompt:  # stage 1 has a loop and an optimizer of its own
        length, own = f'{prompt.get("max_iters", "default")} iterations of stage 1', prompt.get('optimizer') or {}
    rows = {
        'model': _join(found.get('model.type'), _model(found, 'model.')),
        'teacher': _teacher(config),
        'method': _methods(config),
        'data': _join(found.get('train_dataloader.dataset.type'), found.get('train_dataloader.dataset.data_root')),
        'schedule': length,
        'batch size': loader.get('batch_size') and f'{loader["batch_size"]} a process',
        'optimizer': _join(own.get('type'), own.get('lr') is not None and f'learning rate {own["lr"]}'),
        'precision': 'mixed (AMP)' if str(optimizer.get('type', '')).startswith('Amp') else None,
        'start from': config.get('load_from') or None,
    }
    return {name: text(str(value)) for name, value in rows.items() if value}


def _is_prompt_hook(hook: Any) -> bool:
    return isinstance(hook, dict) and str(hook.get('type')).endswith('FrequencyPromptHook')


LENGTHS = {'max_epochs': 'epochs', 'max_iters': 'iterations'}


def _join(*parts: Any) -> str | None:
    return ', '.join(shorten(str(part)) for part in parts if part) or None


def _model(leaves: dict[str, Any], prefix: str) -> str:
    names = [leaves.get(f'{prefix}backbone.{key}') for key in ('type', 'depth')]
    width = leaves.get(f'{prefix}backbone.base_channels')
    return '-'.join(str(name) for name in names if name) + (f' of width {width}' if width else '')


def _teacher(config: dict[str, Any]) -> str | None:
    teacher = (config.get('model') or {}).get('teacher') if isinstance(config.get('model'), dict) else None
    if not isinstance(teacher, dict):
        return None
    inline = teacher.get('model') if isinstance(teacher.get('model'), dict) else {}
    source = teacher.get('cfg_path') or (inline or {}).get('type')
    return f'{shorten(str(source))}, {teacher.get("dtype", "fp32")}' if source else None


def _methods(config: dict[str, Any]) -> str | None:
    model = config.get('model')
    entries = model.get('distill') if isinstance(model, dict) else None
    if not isinstance(entries, dict):
        return None
    found = []
    for name, entry in entries.items():
        loss = entry.get('loss') if isinstance(entry, dict) else None
        kind = str(loss.get('type', '')).rsplit('.', 1)[-1] if isinstance(loss, dict) else ''
        found.append(f'{name} ({kind})')
    return ', '.join(found)
