"""The command line: roles are started from it, and people ask a cluster through it.

main.py            from the arguments to the exit code; turns errors into sentences
table.py           each command with its options, its help, and what runs it
parser.py          reads a command line by the table, and loads what runs it
reaching.py        the cluster that a command asks
cluster_commands.py   status, clients, stop, token
job_commands.py    submit, jobs, result, logs, cancel, job forget
job_status.py, failure_text.py, progress.py, following.py   how a job goes, for people
member_commands.py, log_commands.py   `member …`; `log verify`, `log show`
run.py, run_directory.py   `run`: a private cluster for one job
"""
