"""Which programs a client may forget, with their folders."""

from __future__ import annotations

from tasksprint.execution.programs import Programs
from tasksprint.execution.records import Program
from tasksprint.execution.timers import Timers
from tasksprint.settings import Settings


def make() -> tuple[Programs, list[object]]:
    outbox: list[object] = []
    return Programs(Settings(), Timers(), outbox), outbox  # type: ignore[arg-type]


def test_archive_is_forgotten_only_when_nothing_in_it_is_used() -> None:
    programs, outbox = make()
    one, two = programs.get("aa", "first", ()), programs.get("aa", "second", ())
    programs.prepare(one)
    assert outbox and not programs.forget("aa", ())  # it is being unpacked
    programs.prepared("aa")
    assert not programs.forget("aa", [two])  # a job has it
    assert list(programs) == [one, two]
    assert programs.forget("aa", ())
    assert list(programs) == []
    # The next job of it has it unpacked anew.
    outbox.clear()
    again = programs.get("aa", "first", ())
    assert isinstance(again, Program) and again is not one
    programs.prepare(again)
    assert len(outbox) == 1


def test_archive_that_is_not_known_may_go() -> None:
    programs, _ = make()
    programs.get("bb", "first", ())
    assert programs.forget("aa", [])
    assert len(list(programs)) == 1
