"""The coordinator's replicated state machine.

Finding your way, in the order in which to read:

    commands    what stands in the log, and its encoding
    applied     what applying an entry yields          view   what a client is told to do
    rows        the tables of the durable mirror
    schedule    `Schedule`: entries in, outcomes out; the digest; the door for reading

    jobs        a job and its tasks, with their states (task_states);
                job_rows, task_rows, event_lines: how they are kept and told
    clients, requests    the other entities, each with its row
    state       all of them together, and what the entry being applied changed
    transitions   what a change of a task's state does, by the table of task_states
    placement/  which client runs which task; ahead of need
    lifecycle   how jobs start and end                 answers   what schedulers ask for
    results     what counts as a result; failures, lost results
    liveness    clients that join, leave, fall silent and come back; ticks
    reading     views and summaries             state_rows   the state from its rows
    check       the invariants

The deciding modules (lifecycle, results, answers, liveness) share one `State` and call
each other in this order only, downwards: a later one may call an earlier one. All of them
tell `Transitions` what happened to a task. Placement comes once, at the end of an entry.

Everything here is replicated to the byte: integers, strings and lists in order; no
clock, no chance, no sets that are iterated, no floats. What is local to a replica is in hosting/.
"""
