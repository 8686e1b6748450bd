"""Where a checkpoint comes from: a file or a URL, its hash, and whether its maker is trusted."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

import torch

from freekd_mm.files import turn

# OpenMMLab's files end with the first digits of their SHA-256; not a date, which some file names end with.
HASH_SUFFIX = re.compile(r'-(?!20\d{6}\.)([0-9a-f]{8,64})\.(?:pth|pt)$')
#: Files that :func:`trust` has named.
TRUSTED: set[Path] = set()


def trust(*sources: str | os.PathLike) -> None:
    """Lets these files or URLs, and no others, be unpickled plainly, which runs any code in them.

    ``--trust-checkpoint`` of the tools. Only for files that you made yourself.
    """
    for source in map(str, sources):
        path = _cached(source) if _is_url(source) else Path(source)
        TRUSTED.add(path.expanduser().resolve())


def sha256(path: str | os.PathLike) -> str:
    """Returns the SHA-256 of a file as hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        for block in iter(lambda: file.read(1 << 20), b''):
            digest.update(block)
    return digest.hexdigest()


def short_hash(path: str | os.PathLike) -> str:
    """Returns the first eight digits of a file's SHA-256, as in the names of OpenMMLab's files."""
    return sha256(path)[:8]


def fetch(source: str) -> str:
    """Returns a local path: the file itself, or the verified copy of a URL in PyTorch's hub cache."""
    if not _is_url(source):
        return os.path.expanduser(source)
    target = _cached(source)
    digits = HASH_SUFFIX.search(target.name)
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        # The processes of a machine take turns: the first downloads, the others find its file or fail by themselves.
        with turn(target.parent):
            try:
                if not target.is_file():
                    torch.hub.download_url_to_file(source, str(target), digits.group(1) if digits else None)
            except (OSError, RuntimeError) as error:
                raise RuntimeError(
                    f'cannot download {source}: {error}. Download it by other means and give its local path instead, '
                    f'or save it as {target}.'
                ) from error
    return str(target)


def is_here(source: str) -> bool:
    """Whether a checkpoint need not be downloaded: a file, or a URL whose copy is in the cache."""
    return not _is_url(source) or _cached(source).is_file()


def _is_url(source: str) -> bool:
    return source.startswith(('http://', 'https://'))


def _cached(url: str) -> Path:
    """Returns where the copy of a URL is, or will be."""
    name = url.split('?')[0].rsplit('/', 1)[1]
    if not HASH_SUFFIX.search(name):  # two files may have this name
        name = f'{hashlib.sha256(url.encode()).hexdigest()[:8]}-{name}'
    return Path(torch.hub.get_dir()) / 'checkpoints' / name
