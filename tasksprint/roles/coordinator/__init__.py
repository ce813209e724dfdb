"""One coordinator: a replica of the log, the state machine behind it, and jobs' schedulers on it.

process.py         `coordinator`: starts one, and stops it in good order
coordinator.py     makes all parts and puts them together; carries out a turn
ports.py, roster.py   the parts' narrow Protocols; the members of the cluster
turns.py           the loop and its timer
peers.py, members.py   the other members: their frames; changing who belongs to them
durable.py, log_tail.py   entries and rows that wait for the disk; how much of the log is kept
applying.py        the state machine, and the entries that wait for it
deciding.py, decisions.py, ticks.py   proposals, reads and their waiters; the time
scheduler_runner.py, runners.py   jobs' schedulers as processes
archives.py        jobs' archives: kept, copied to a quorum, unpacked for schedulers
agreement.py       finding the replica whose state isn't that of the others
copies.py          copies of the mirror, given and taken
disk_space.py      the consequences of a full disk
paths.py, client_paths.py, job_paths.py, operator_paths.py   handlers of HTTP requests
submitting.py      checks a job before it may stand in the log
standing.py, told.py, unheard.py, job_notes.py   facts for people
surroundings.py    the command line, clocks, chance, network, disk, processes
"""
