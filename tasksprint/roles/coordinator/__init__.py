"""One coordinator: a replica of the log, the state machine behind it, and jobs' schedulers on it.

process.py         `coordinator`: starts one, and stops it in good order
coordinator.py     makes all parts and puts them together; what happens in a turn of the loop
ports.py, roster.py   what parts ask of each other; who belongs to the cluster
decisions.py       who waits for which command of the log
paths.py, client_paths.py, job_paths.py, operator_paths.py   what is asked by HTTP
archives.py        jobs' archives: kept, copied to a quorum, unpacked for schedulers
scheduler_runner.py, runners.py   jobs' schedulers as processes
members.py, peers.py   the other members: changing them, hearing them
agreement.py       finding the replica whose state isn't that of the others
copies.py          copies of the mirror, given and taken
disk_space.py, log_tail.py   what is kept, and what a full disk means
submitting.py      what a job must be before it may stand in the log
standing.py, told.py, unheard.py, job_notes.py   what people see
surroundings.py    the command line, clocks, chance, network, disk, processes
"""

from __future__ import annotations

__all__: list[str] = []
