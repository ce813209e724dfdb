"""Everything that is SQL: a replica's file and a client's file.

- `records`: plain data that a replica's store takes and gives back
- `database`: opening, owning, checking and checkpointing one SQLite file
- `many_rows`: statements that write many rows in one step
- `replica_store`: all that a replica may not forget, and the mirror of the state. Its parts:
  `vital` has the promise and the log, `mirror_tables` the rows of the mirror, `blobs` the
  archives of jobs
- `mirror_snapshot`: the mirror at one moment, for copies and backups
- `scrub` looks for rotten rows, `repair` makes the best of them, `verify` tells people
- `result_store`: results of a client's tasks; `result_reader` reads it, `staging` brings
  in files, `result_records` are its plain types
- `inventory`: the contents of a replica's file, read beside its owner
- `backup_file`: a backup, with checksums over every byte
- `writer`: the thread that owns one store, and group commit

A store is synchronous and knows nothing of loops and threads; it must be used by one
thread at a time. It keeps all of a commit or none of it, and says so only once the commit is
on the disk. It decides nothing about consensus or tasks. But it knows which of its data others
have too: this decides how a damaged file is mended.
"""
