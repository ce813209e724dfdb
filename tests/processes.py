"""Whether a process is still there; shared by the tests of whatever starts some."""

from __future__ import annotations

import time

import psutil

__all__ = ["is_running", "wait_gone"]


def is_running(pid: int) -> bool:
    """Return whether a process runs; a zombie that nobody reaps has gone."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def wait_gone(pid: int) -> None:
    """Wait until a process has gone."""
    deadline = time.monotonic() + 60
    while is_running(pid):
        assert time.monotonic() < deadline, f"process {pid} still lives"
        time.sleep(0.005)
