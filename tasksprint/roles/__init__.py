"""The processes that people start: a coordinator, a client, an attached node.

coordinator/    one replica of the log, with the schedulers of all jobs
client/         one machine's nodes and values
node.py         `node --exec`: attaches a program to the client on this machine

And what the two share: metrics.py, waiters.py, own_tasks.py, steps.py, loop_watch.py,
last_use.py. Only wiring lives here: whatever decides is in a core.
"""

from __future__ import annotations

__all__: list[str] = []
