"""What went wrong and what to do about it, in words: from a command's output or from an OSError."""

from __future__ import annotations

import errno
import re
from pathlib import Path


class SetupError(Exception):
    """A failed step.

    Args:
        cause: What is wrong, in one sentence.
        advice: What the user can do, ideally a command.
        log: The output of the failed command.
    """

    def __init__(self, cause: str, advice: str, log: Path | None = None) -> None:
        super().__init__(cause)
        self.cause = cause
        self.advice = advice
        self.log = log

    def text(self) -> str:
        """Returns the message that ends the program."""
        lines = [f'Set-up stopped: {self.cause}', f'What to do: {self.advice}']
        if self.log is not None:
            lines.append(f'Full output: {self.log}')
        return '\n'.join(lines)


COMPILER_ADVICE = (
    'install one (Debian, Ubuntu: apt install g++ make; Fedora: dnf install gcc-c++ make; macOS: xcode-select '
    '--install; without root: conda install -c conda-forge cxx-compiler), then run make setup again'
)
HEADERS_ADVICE = (
    'install them (Debian, Ubuntu: apt install python3-dev; Fedora: dnf install python3-devel) or use a Python '
    'that has them (pyenv, conda): make setup PYTHON=/path/to/python3'
)
DISK_ADVICE = (
    'free some space, or put the environment and the cache on another disk: '
    'make setup VENV=/big/disk/venv  with  XDG_CACHE_HOME=/big/disk/cache  and  TMPDIR=/big/disk/tmp'
)
NETWORK_ADVICE = (
    'check the connection, or name a mirror or proxy that this machine can reach (PIP_INDEX_URL, HTTPS_PROXY); '
    'then run make setup again: finished steps are kept'
)
MEMORY_ADVICE = 'compile fewer files at a time: MAX_JOBS=1 make setup  (what is compiled is kept)'

_NETWORK = (
    r'NameResolutionError|Temporary failure in name resolution|Name or service not known|nodename nor servname|'
    r'Failed to establish a new connection|Network is unreachable|Connection refused|ConnectTimeout|'
    r'Read timed out|ProxyError|Cannot connect to proxy|Max retries exceeded|SSLError|CERTIFICATE_VERIFY_FAILED'
)
# In this order: a full disk or a missing tool also causes the messages further down.
_KNOWN = (
    (r'No space left on device|Errno 28|Disk quota exceeded', 'the disk is full', DISK_ADVICE),
    (
        r'Killed signal terminated program|fatal error: Killed|virtual memory exhausted|cannot allocate memory',
        'the compiler ran out of memory',
        MEMORY_ADVICE,
    ),
    (r'Python\.h: No such file|Python\.h.? file not found', "Python's C headers are missing", HEADERS_ADVICE),
    (
        r"(command|execute) '?\S*(g\+\+|c\+\+|gcc|clang|cc)'? failed: No such file|"
        r'(g\+\+|c\+\+|gcc|cc): (command )?not found|'
        r"No such file or directory: '\S*(g\+\+|c\+\+|gcc|cc)'",
        'there is no C++ compiler',
        COMPILER_ADVICE,
    ),
    (
        r'ensurepip is not (available|installed)|No module named .?(ensurepip|venv)\b',
        'this Python cannot make virtual environments',
        'install that part (Debian, Ubuntu: apt install python3-venv) or use another Python: '
        'make setup PYTHON=/path/to/python3',
    ),
    (
        r'Read-only file system|Permission denied',
        'a folder cannot be written',
        'use folders of your own: make setup VENV=$HOME/venv  with  XDG_CACHE_HOME and TMPDIR set to such ones',
    ),
)
_MISSING = re.compile(r'No matching distribution found for (\S+)')
_OS_ERRORS = {
    errno.ENOSPC: _KNOWN[0],
    errno.EDQUOT: _KNOWN[0],
    errno.EACCES: _KNOWN[-1],
    errno.EROFS: _KNOWN[-1],
    errno.EPERM: _KNOWN[-1],
}


def explain_output(output: str, what: str, log: Path) -> SetupError:
    """Returns the error for a command that failed.

    Args:
        output: What it printed.
        what: The step, e.g. ``'PyTorch 2.13.0'``.
        log: Where the output is.
    """
    for pattern, cause, advice in _KNOWN:
        if re.search(pattern, output):
            return SetupError(f'{what}: {cause}', advice, log)
    if re.search(_NETWORK, output):
        return SetupError(f'{what}: the package index cannot be reached', NETWORK_ADVICE, log)
    missing = _MISSING.search(output)
    if missing and 'from versions: none' in output:
        # pip says only this when it was told not to try again.
        cause = f'the package index cannot be reached, or does not have {missing[1]}'
        return SetupError(f'{what}: {cause}', NETWORK_ADVICE, log)
    if missing:
        return SetupError(
            f'{what}: the package index has no {missing[1]} for this Python and platform',
            'use another Python (make setup PYTHON=python3.11), or an index that has it (PIP_INDEX_URL)',
            log,
        )
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r'(\w*Error|ERROR|error|FAILED|fatal)\b.*', line)] or lines
    last = errors[-1] if errors else 'it said nothing'
    return SetupError(
        f'{what}: {last[:300]}',
        'read the end of the full output; then run make setup again: finished steps are kept',
        log,
    )


def explain_os_error(error: OSError, log: Path | None = None) -> SetupError:
    """Returns the error for a file operation of this program that failed."""
    place = f' ({error.filename})' if error.filename else ''
    if error.errno in _OS_ERRORS:
        _, cause, advice = _OS_ERRORS[error.errno]
        return SetupError(f'{cause}{place}', advice, log)
    return SetupError(
        f'{error.strerror or error}{place}', 'fix that and run make setup again: finished steps are kept', log
    )
