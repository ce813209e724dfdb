"""Starting, feeding and stopping the programs of users, and the machine under them.

    directories      where our files live by default; keeps other users from reading them
    command_line     how a program is run: argv and environment
    program          one child process: a socket as its stdin and stdout, its stderr, its end
    attach           nodes started by hand, which join the client on this machine
    resources        how many CPUs and how much memory this process may really use
    job_directory    a job's manifest, its archive, and how it is unpacked elsewhere

This is a shell: it does I/O and decides nothing. `protocol/` reads the bytes of a program.
`execution/` and `coordination/` decide when one is started or stopped.
"""
