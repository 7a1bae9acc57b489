"""`python -m int8calib`, the command line."""

from __future__ import annotations

import sys

from int8calib.cli.start import main

if __name__ == "__main__":
    sys.exit(main())
