"""One client: follows its view, runs nodes, moves values, reports.

From the top down; each file imports only what stands below it:

process.py         `client`: starts one, and stops it in good order
client.py          its parts, put together; which of them carries out what
paths.py           values for other clients and for people, logs, status
metrics.py         what it measures
nodes.py           its nodes, started here or attached; node_shell.py is one of them, and
                   recent_output.py what they printed lately
fetching.py        inputs from other clients
reporting.py       what is done, which nodes are attached, what they run on
joining.py         joining and following the view; incarnations.py: each time as a new one
surroundings.py    clocks, chance, network, disk, processes: all that comes from outside
programs.py        jobs' programs: fetched, unpacked, set up
durable.py         what waits for the disk
held.py, values.py the results on its disk; values in memory
disk_space.py      what follows when the disk fills
turns.py           the turns of the loop, and its timer
ports.py           what a part asks of what stands above it
"""

from __future__ import annotations

__all__: list[str] = []
