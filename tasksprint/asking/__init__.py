"""Finding the coordinator that leads, and asking it.

rota.py       the order of asking, and how an answer changes it
leader.py     for clients, on their loop
cluster.py    for commands and users' programs, blocking; and the calls that they make
"""
