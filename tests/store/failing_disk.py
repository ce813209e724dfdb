"""A disk that fails as tests want it to: a layer below SQLite, in this process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import apsw

__all__ = ["Failing", "failing_disk"]


class Failing:
    """Which files fail, from when on."""

    def __init__(self) -> None:
        self.reads = False
        self.syncs = False
        self.full = ""  # how the name of a file ends that can't be written
        self.spared = 0  # writes of it that succeed before


@contextlib.contextmanager
def failing_disk() -> Iterator[Failing]:
    """Put the layer between SQLite and the operating system while the block runs."""
    state = Failing()

    class File(apsw.VFSFile):
        def __init__(self, name: Any, flags: Any) -> None:
            super().__init__("unix", name, flags)
            self.name = name if isinstance(name, str) else name.filename()

        def xRead(self, amount: int, offset: int) -> bytes:
            if state.reads and offset >= 4096:
                raise apsw.IOError("disk I/O error")
            return super().xRead(amount, offset)

        def xWrite(self, data: bytes, offset: int) -> None:
            if state.full and self.name.endswith(state.full):
                state.spared -= 1
                if state.spared < 0:
                    raise apsw.FullError("database or disk is full")
            super().xWrite(data, offset)

        def xSync(self, flags: int) -> None:
            if state.syncs:
                raise apsw.IOError("disk I/O error")
            super().xSync(flags)

    class Layer(apsw.VFS):
        def xOpen(self, name: Any, flags: Any) -> File:
            return File(name, flags)

    layer = Layer("failing", "unix", makedefault=True)
    try:
        yield state
    finally:
        layer.unregister()
