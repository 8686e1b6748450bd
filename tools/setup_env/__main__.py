"""Makes the environment of this repository: `make setup`, or `python tools/setup_env --help`.

This file must run on any Python 3 to say that a newer one is needed; the rest may use Python 3.8.
"""

import os
import sys

if sys.version_info < (3, 8):
    sys.stderr.write(
        'Set-up stopped: Python should be 3.8 or newer, but got {}.{} ({})\n'
        'What to do: name a newer one, for example  make setup PYTHON=python3.11\n'.format(
            sys.version_info[0], sys.version_info[1], sys.executable
        )
    )
    sys.exit(1)

TOOLS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [TOOLS, os.path.dirname(TOOLS)]

from setup_env.main import main  # noqa: E402

sys.exit(main())
