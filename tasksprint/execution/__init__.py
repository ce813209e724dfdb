"""The client's core: from a view to results that are stored and reported.

Find your way: `workbench` has the events and joins the parts, `effects` has what it
asks of the shell. `inputs` knows where bytes are, `programs` and `nodes` who runs what,
`values` what an answer must be like, `reports` what the coordinator was told. `records`
and `timers` serve them.
"""

from __future__ import annotations

from tasksprint.execution.workbench import Workbench

__all__ = ["Workbench"]
