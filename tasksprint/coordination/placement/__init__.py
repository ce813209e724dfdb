"""Which client runs which task.

    estimates   how long tasks run, and what they count in a queue
    order       in which order the ready tasks of a job go out
    ready       which job is next
    capacity    which clients are open, and the one with the least to do
    choice      which of them gets a task
    followers   tasks placed ahead of need
    placement   `Placement`: all of it, at the end of an entry
"""
