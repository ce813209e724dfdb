"""Finding the coordinator that leads, and asking it.

rota.py       whom to ask next, and what an answer says of that
leader.py     for clients, on their loop
cluster.py    for commands and users' programs, blocking; and the calls that they make
"""

from __future__ import annotations

__all__: list[str] = []
