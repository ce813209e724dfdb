"""The processes that people start: coordinator, client, node, and the commands.

main.py            the command line: picks a role or a command, turns errors into sentences
coordinator.py     one replica: consensus, state machine and schedulers around one loop
replica_codec.py   consensus messages as frames, and back
scheduler_runner.py   one job's scheduler process on this replica
coordinator_http.py   the coordinator's paths
waiters.py         who waits until a view or a job changes
client.py          one client: polls the view, reports, joins again
client_nodes.py    its nodes: processes started here, and attached ones
client_fetch.py    inputs from other clients
client_values.py   values in memory over the result store
client_http.py     the client's paths: values, logs
node.py            `node --exec`: attaches a program to the client on this machine
leader.py          finds the coordinator that leads, and asks it (for clients)
cluster.py         the same for commands, blocking; and the calls that they make
backup.py, restore.py   the state of a cluster to a file, and back
recover.py         `recover`: a cluster of one out of a survivor's data
log_commands.py    `log verify`, `log show`
run.py             `run`: a private cluster for one job
show.py            what the reading commands print

Only wiring lives here: whatever decides is in a core.
"""

from __future__ import annotations

__all__: list[str] = []
