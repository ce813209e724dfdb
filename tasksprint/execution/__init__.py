"""The client's core: from a view to results that are stored and reported.

Finding your way:

- `workbench` has the events, and joins the parts; `effects` are its orders to the shell
- `inputs` knows where bytes are
- `programs` and `nodes` know which node runs which task
- `values` checks the values of an answer
- `reports` tells the coordinator
- `stalls` says why tasks don't run, or run for long
- `records` and `timers` serve them
"""

from __future__ import annotations

from tasksprint.execution.workbench import Workbench

__all__ = ["Workbench"]
