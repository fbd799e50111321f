"""``python -m loadtest.report DIR...``, and `hearth loadtest report`."""

from __future__ import annotations

import sys

from loadtest.report.command import main

if __name__ == "__main__":
    sys.exit(main())
