"""Starting, feeding and stopping the programs of users, and what they run on.

    directories      where our files live by default, and that nobody else reads them
    command_line     how a program is run: argv and environment
    program          one child process: a socket as its stdin and stdout, its stderr, its end
    attach           nodes that a person starts by hand and that join the client on this machine
    resources        how many CPUs and how much memory this process may really use
    job_directory    a job's manifest, its archive, and how it is unpacked elsewhere

This is a shell: it does I/O and decides nothing. What the bytes of a program
mean is the business of `protocol/`, and when one is started or stopped that of
`execution/` and `coordination/`.
"""
