"""What is changed in mmengine: loading as data, saving whole, and the configs of the onedl line."""

from __future__ import annotations

import importlib.metadata
import inspect
import logging
import os
import re
from typing import Any

from mmengine import __version__
from mmengine.config import config
from mmengine.logging import print_log
from mmengine.utils import digit_version

from freekd_mm.checkpoints.fitting import UNCOUNTED
from freekd_mm.checkpoints.loading import load_checkpoint_file
from freekd_mm.checkpoints.saving import save_atomically
from freekd_mm.checkpoints.sources import fetch
from freekd_mm.text import some


def load_as_data() -> None:
    """Makes mmengine load local and downloaded checkpoints (resume, load_from, init_cfg) as data only."""
    from mmengine.runner import checkpoint

    loader: Any = checkpoint.CheckpointLoader
    loader.register_scheme(prefixes='', loader=load_local, force=True)
    loader.register_scheme(prefixes=('http://', 'https://'), loader=load_http, force=True)
    # 'torchvision://', 'open-mmlab://' and 'mmcls://' end in this function.
    vars(checkpoint)['load_from_http'] = load_http


def load_local(filename: str, map_location: Any = None) -> Any:
    """Loads a local file."""
    return _without_config(load_checkpoint_file(filename, map_location=map_location))


def load_http(filename: str, map_location: Any = None, **kwargs: Any) -> Any:
    """Loads a file from the web."""
    return _without_config(load_checkpoint_file(fetch(filename), map_location=map_location))


def _without_config(content: Any) -> Any:
    """Renames ``meta['config']``, which mmengine runs as Python when it resumes. Only mmcv 1.x wrote it."""
    meta = content.get('meta') if isinstance(content, dict) else None
    if isinstance(meta, dict) and 'config' in meta:
        meta['cfg'] = meta.pop('config')
    return content


def save_whole() -> None:
    """Makes ``save_checkpoint``, which all hooks of mmengine use, atomic for local files."""
    import mmengine.runner.runner
    from mmengine.fileio import LocalBackend, get_file_backend

    original = mmengine.runner.save_checkpoint

    def save_checkpoint(
        checkpoint: dict,
        filename: str | os.PathLike,
        file_client_args: dict | None = None,
        backend_args: dict | None = None,
    ) -> None:
        remote = '://' in str(filename) or file_client_args is not None
        if remote or not isinstance(get_file_backend(filename, backend_args=backend_args), LocalBackend):
            original(checkpoint, filename, file_client_args, backend_args)
        else:
            save_atomically(checkpoint, filename)

    for module in (mmengine.runner.checkpoint, mmengine.runner, mmengine.runner.runner):
        vars(module)['save_checkpoint'] = save_checkpoint


def say_what_fits() -> None:
    """Makes ``load_state_dict``, which ``load_from`` and ``init_cfg`` use, say in one line what did not fit."""
    import mmengine.runner.checkpoint

    original = mmengine.runner.checkpoint.load_state_dict

    def load_state_dict(module: Any, state_dict: Any, strict: bool = False, logger: Any = None) -> None:
        try:
            # It loads what fits before it raises.
            original(module, state_dict, strict=True, logger=logger)
        except RuntimeError as error:
            if strict:
                raise
            print_log(_one_line(module, str(error)), logger or 'current', logging.WARNING)

    for place in (mmengine.runner.checkpoint, mmengine.runner):
        vars(place)['load_state_dict'] = load_state_dict


def _one_line(module: Any, said: str) -> str:
    reshaped, missing, unused = (
        [name for line in re.findall(rf'^{start}([^:\n]*)', said, re.MULTILINE) for name in line.split(', ')]
        for start in ('size mismatch for ', 'missing keys in source state_dict: ', 'unexpected .* state_dict: ')
    )
    count = sum(not key.endswith(UNCOUNTED) for key in module.state_dict())
    return (
        f'{count - len(missing) - len(reshaped)} of {count} weights of {type(module).__name__} were loaded; not in the '
        f'file: {some(missing)}; of another shape there: {some(reshaped)}; in the file alone: {some(unused)}'
    )


def find_configs_of_forks() -> None:
    """Lets configs of the onedl line inherit ``mmseg::...``.

    Their mmengine takes the scope ``mmseg`` for the distribution ``mmsegmentation``, which is called
    ``onedl-mmsegmentation`` there, and says that it is not installed. Other scopes have the name of their module.
    """
    from mmengine.config import utils

    if _is_installed('onedl-mmsegmentation') and not _is_installed('mmsegmentation'):
        utils.MODULE2PACKAGE['mmseg'] = 'mmseg'


def _is_installed(distribution: str) -> bool:
    try:
        importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def resumed_loop_walks() -> bool:
    """Whether an iteration-based loop that resumes first takes all batches up to its place: since mmengine 0.10.3."""
    return digit_version(__version__) >= digit_version('0.10.3')


def configs_know_their_file() -> bool:
    """Whether ``__file__`` is known in a config with ``read_base``: in mmengine 0.8 it is not."""
    return "'__file__'" in inspect.getsource(config)
