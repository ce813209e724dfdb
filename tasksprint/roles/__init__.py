"""The processes that people start: a coordinator, a client, an attached node.

coordinator/    one replica of the log, with the schedulers of all jobs
client/         one machine's nodes and values
node.py         `node --exec`: attaches a program to the client on this machine

The two share metrics.py, waiters.py, own_tasks.py, steps.py, loop_watch.py and last_use.py.
Only wiring lives here: all decisions are in a core.
"""
