"""`python -m llamafu`."""

from __future__ import annotations

import sys

from llamafu.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
