"""Everything that is SQL: a replica's file and a client's file.

- `records`: what is handed to a replica's store and what it gives back
- `database`: opening, owning, checking and checkpointing one SQLite file
- `many_rows`: statements that write many rows in one step
- `replica_store`: what a replica may not forget, and the mirror of the state; of it
  `vital` has the promise and the log, `mirror_tables` the rows of the mirror, `blobs` the
  archives of jobs
- `mirror_snapshot`: the mirror at one moment, for copies and backups
- `scrub` looks for what has rotted, `repair` makes the best of it, `verify` tells people
- `result_store`: what a client's tasks made; `result_reader` reads it, `staging` brings
  in files, `result_records` are its plain types
- `inventory`: what a replica's file has, read beside its owner
- `backup_file`: a backup, with checksums over every byte
- `writer`: the thread that owns one store, and group commit

A store is synchronous and knows nothing of loops and threads; it must be used by one
thread at a time. It keeps what it is handed, all of a commit or none of it, and says so
only once it is on the disk. It decides nothing of consensus and of tasks; but it knows
which of them can be had again from others, for that says what becomes of a damaged file.
"""
