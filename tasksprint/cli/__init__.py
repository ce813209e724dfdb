"""The command line: roles are started from it, and people ask a cluster through it.

main.py            picks a role or a command, turns errors into sentences
commands.py        the commands that ask a running cluster
job_status.py, failure_text.py, progress.py, following.py   how a job goes, for people
member_commands.py, log_commands.py   `member …`, `log verify`, `log show`
run.py, run_directory.py   `run`: a private cluster for one job
"""

from __future__ import annotations

__all__: list[str] = []
