"""Which client runs which task.

    estimates   how long tasks run, and their load in a queue
    order       the order in which the ready tasks of a job go out
    ready       the next job
    capacity    the clients that are open, and the one with the least to do
    choice      the client that gets a task
    followers   tasks placed ahead of need
    placement   `Placement`: all of it, at the end of an entry
"""
