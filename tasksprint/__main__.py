"""`python -m tasksprint`, and what the one file runs."""

from __future__ import annotations

import sys

from tasksprint.cli.main import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
