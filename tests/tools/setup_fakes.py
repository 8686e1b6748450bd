"""What the tests of the set-up program share: a folder that looks like an environment, steps that run nothing."""

from __future__ import annotations

import sys
from pathlib import Path

from setup_env import steps, venv

ROOT = Path(__file__).resolve().parents[2]


def isolate(tmp_path, monkeypatch) -> None:
    """Hides the user's cache and settings."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    for name in ('CXX', 'MAX_JOBS', 'FORCE_CUDA', 'MMCV_CUDA', 'TORCH_CUDA_ARCH_LIST'):
        monkeypatch.delenv(name, raising=False)


def fake_venv(folder: Path, python: str | None = None, **installed: str) -> venv.Venv:
    """A folder that looks like a virtual environment with some distributions in it."""
    minor = f'python{sys.version_info[0]}.{sys.version_info[1]}'
    site = folder / 'lib' / minor / 'site-packages'
    (folder / 'bin').mkdir(parents=True)
    site.mkdir(parents=True)
    if python is not None:
        (folder / 'bin' / 'python').write_text(python)
        (folder / 'bin' / 'python').chmod(0o755)
    else:
        (folder / 'bin' / 'python').symlink_to(sys.executable)
    for name, version in installed.items():
        info = site / f'{name}-{version}.dist-info'
        info.mkdir()
        (info / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n')
    return venv.Venv(folder)


class FakeSteps(steps.Steps):
    """Runs nothing: remembers the commands, and lets some fail."""

    def __init__(self, folder: Path, fails: tuple[str, ...] = ()) -> None:
        super().__init__(folder, total=1)
        self.fails = fails
        self.commands: list[str] = []
        self.environments: list[dict] = []

    def try_run(self, command, name, *, env=None, **options):
        self.commands.append(' '.join(map(str, command)))
        self.environments.append(dict(env or {}))
        if name.startswith('mmcv-build'):
            out = Path(command[command.index('--wheel-dir') + 1])
            out.mkdir(parents=True, exist_ok=True)
            (out / 'mmcv-2.1.0-cp311-cp311-linux_x86_64.whl').write_text('built')
        return 'ERROR: no', int(name in self.fails)
