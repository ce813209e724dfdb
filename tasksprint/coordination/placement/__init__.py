"""Which client runs which task.

    estimates   how long tasks run, and what they count in a queue
    ready       which ready task is next
    capacity    which clients are open, and the one with the least to do
    choice      which of them gets a task
    followers   tasks placed ahead of need
    placement   `Placement`: all of it, at the end of an entry
"""
