"""Says which versions are here, which work together, what is missing and how to fix it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from freekd_mm.doctor.checkup import main

if __name__ == '__main__':
    sys.exit(main())
