"""`tasksprint` on a machine whose memory is wrong: once a file exists, log time is off by 1 ms.

Run as `python wrong_state.py FILE ARGUMENTS …`, with the package on PYTHONPATH.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from tasksprint.cli.main import main
from tasksprint.coordination.schedule import Applied, Schedule

_file = Path(sys.argv.pop(1))
_apply = Schedule.apply


def _apply_wrongly(self: Schedule, *arguments: Any, **options: Any) -> Applied:
    if _file.exists():
        _file.unlink()
        self._state.log_ms += 1
    return _apply(self, *arguments, **options)


if __name__ == "__main__":
    Schedule.apply = _apply_wrongly  # type: ignore[method-assign]
    sys.exit(main(sys.argv[1:]))
