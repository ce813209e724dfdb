"""One client: follows its view, runs nodes, moves values, reports.

From the top down; each file imports only what stands below it:

process.py         `client`: starts one, and stops it in good order
client.py          its parts, put together; hands each order to the part that carries it out
paths.py           values for other clients and for people, logs, status
metrics.py         its measurements
nodes.py           its nodes, started here or attached; node_shell.py is one of them, and
                   recent_output.py their latest output
fetching.py        inputs from other clients
reporting.py       finished work, attached nodes, the runtimes of nodes
joining.py         joining and following the view; incarnations.py: each time as a new one
surroundings.py    clocks, chance, network, disk, processes: all things from outside
programs.py        jobs' programs: fetched, unpacked, set up
durable.py         results that wait for the disk
held.py, values.py the results on its disk; values in memory
disk_space.py      stops work when the disk fills
turns.py           the turns of the loop, and its timer
ports.py           Protocols: a part's requests to the parts above it
"""
