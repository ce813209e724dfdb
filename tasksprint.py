"""Start TaskSprint from a checkout: the same as `python -m tasksprint`.

Works from any working directory, through a symbolic link, and with -P or -I. Not
part of the .pyz or of an installation, which have their own ways in.
"""

from __future__ import annotations

import os
import sys

HERE = os.path.dirname(os.path.realpath(__file__))


def start() -> int:
    """Start the command line of the package that lies beside this file."""
    if not os.path.isfile(os.path.join(HERE, "tasksprint", "__init__.py")):
        print(
            f"tasksprint: the folder 'tasksprint' isn't beside {os.path.realpath(__file__)!r}; "
            "this script starts a checkout only; to carry one file, build tasksprint.pyz "
            "with build_zipapp.py",
            file=sys.stderr,
        )
        return 78  # EX_CONFIG, as for every start that the operator must mend
    # First, and by hand: with -P or -I the script's folder isn't on the path at all.
    sys.path.insert(0, HERE)
    from tasksprint.cli.main import main

    return main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(start())
