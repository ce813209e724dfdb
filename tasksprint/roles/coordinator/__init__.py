"""One coordinator: a replica of the log, the state machine behind it, and jobs' schedulers on it.

process.py         `coordinator`: starts one, and stops it in good order
coordinator.py     makes all parts and puts them together; what happens in a turn
ports.py, roster.py   what parts ask of each other; who belongs to the cluster
turns.py           the loop and its timer
peers.py, members.py   the other members: their frames; changing who belongs to them
durable.py, log_tail.py   what waits for the disk; how much of the log is kept
applying.py        the state machine, and the entries that wait for it
deciding.py, decisions.py, ticks.py   proposals, reads, and who waits for them; the time
scheduler_runner.py, runners.py   jobs' schedulers as processes
archives.py        jobs' archives: kept, copied to a quorum, unpacked for schedulers
agreement.py       finding the replica whose state isn't that of the others
copies.py          copies of the mirror, given and taken
disk_space.py      what a full disk means
paths.py, client_paths.py, job_paths.py, operator_paths.py   what is asked by HTTP
submitting.py      what a job must be before it may stand in the log
standing.py, told.py, unheard.py, job_notes.py   what people see
surroundings.py    the command line, clocks, chance, network, disk, processes
"""

from __future__ import annotations

__all__: list[str] = []
