"""One coordinator: a replica of the log, the state machine behind it, and jobs' schedulers on it.

coordinator.py     all of it around one loop
process.py         `coordinator`: starts one, and stops it in good order
paths.py           what clients, commands and other coordinators ask by HTTP
decisions.py       who waits for which command of the log
archives.py        jobs' archives: kept, copied to a quorum, unpacked for schedulers
scheduler_runner.py, runners.py   jobs' schedulers as processes
members.py, peers.py   the other members: changing them, hearing them
agreement.py       finding the replica whose state isn't that of the others
copies.py          copies of the mirror, given and taken
disk_space.py, log_tail.py   what is kept, and what a full disk means
submitting.py      what a job must be before it may stand in the log
status.py, told.py, unheard.py, job_notes.py   what people see
surroundings.py    clocks, chance, network, disk, processes: all that comes from outside
"""

from __future__ import annotations

__all__: list[str] = []
