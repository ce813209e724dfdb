"""The start of tasksprint.pyz: refuse Pythons that are too old, else hand over.

This file alone must parse under every Python that a machine may have, 2.7 included,
so that each gets a sentence and not a traceback.
"""

import sys


def refuse():
    """Say which Pythons would do; the archive's own list knows."""
    supported = __loader__.get_data("native/SUPPORTED").decode("ascii").split()  # noqa: F821
    pythons = sorted(set(int(key.split("-")[0].strip("cpt")[1:]) for key in supported))
    names = "3.%d" % pythons[0]
    if len(pythons) > 1:
        names = "%s to 3.%d" % (names, pythons[-1])
    sys.stderr.write(
        "tasksprint: this file needs Python %s, found %d.%d.%d (%s); "
        "start it as: python3.%d %s\n"
        % ((names,) + tuple(sys.version_info[:3]) + (sys.executable, pythons[-1], sys.argv[0]))
    )
    sys.exit(78)


# A child of multiprocessing imports this module under another name.
if __name__ == "__main__":
    if sys.version_info < (3, 10):
        refuse()
    import signal

    # Until a command is loaded an interrupt just ends it: modules in C crash by an exception.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    import _tasksprint_boot

    _tasksprint_boot.start()

    from tasksprint.cli.main import main

    sys.exit(main(sys.argv[1:]))
