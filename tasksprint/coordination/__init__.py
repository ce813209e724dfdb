"""The coordinator's replicated state machine.

Finding your way, in the order in which to read:

    commands    the commands of the log, and their encoding
    applied     the outcome of an entry                view   the orders to one client
    rows        the tables of the durable mirror
    schedule    `Schedule`: entries in, outcomes out; the digest; the door for reading

    jobs        a job and its tasks, with their states (task_states);
                job_rows, task_rows, event_lines: how they are kept and told
    clients, requests    the other entities, each with its row
    state       all of them together, and the changes of the entry being applied
    transitions   the effects of a change of a task's state, by the table of task_states
    placement/  which client runs which task; ahead of need
    lifecycle   how jobs start and end                 answers   the commands of schedulers
    results     canonical results; failures, lost results
    liveness    clients that join, leave, fall silent and come back; ticks
    reading     views and summaries             state_rows   the state from its rows
    check       the invariants

The deciding modules (lifecycle, results, answers, liveness) share one `State` and call
each other in this order only, downwards: a later one may call an earlier one. All of them
tell `Transitions` what happened to a task. Placement comes once, at the end of an entry.

Everything here is replicated to the byte: integers, strings and lists in order; no
clock, no chance, no sets that are iterated, no floats. Decisions of one replica are in hosting/.
"""
