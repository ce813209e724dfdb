"""One client: follows its view, runs nodes, moves values, reports.

client.py          all of it around one loop
process.py         `client`: starts one, and stops it in good order
paths.py           values for other clients and for people, logs, status
nodes.py           its nodes: processes started here, and attached ones
programs.py, runtimes.py   jobs' programs, and what they run on
values.py, held.py values in memory over the result store; the results on its disk
fetching.py        inputs from other clients
lives.py           each time that it joins it is a new incarnation
surroundings.py    clocks, chance, network, disk, processes: all that comes from outside
"""

from __future__ import annotations

__all__: list[str] = []
