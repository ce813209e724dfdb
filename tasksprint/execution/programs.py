"""The programs that this client's jobs run, and whether they are ready to be started.

Knows archives by digest, but not their contents, and no node.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial

from tasksprint.execution.effects import Effect, PrepareProgram
from tasksprint.execution.records import Program, ProgramState
from tasksprint.execution.timers import Timers
from tasksprint.settings import Settings

__all__ = ["Programs"]

# So many programs without jobs, tasks and nodes are remembered, with their measured run times.
_UNUSED_MAX = 100


class Programs:
    """All programs, by archive and file, or by the name of attached nodes."""

    def __init__(self, settings: Settings, timers: Timers, outbox: list[Effect]) -> None:
        self._settings = settings
        self._timers = timers
        self._outbox = outbox
        self._programs: dict[tuple[str, str], Program] = {}

    def __iter__(self) -> Iterator[Program]:
        return iter(self._programs.values())

    def get(self, digest: str, command: str, used: Iterable[Program]) -> Program:
        """Return a program, a new one if need be.

        Args:
            digest: Of the archive.
            command: The manifest's "node".
            used: Programs of jobs; they must not be forgotten.
        """
        # A job with attached nodes needs nothing of its archive.
        name = ("" if command.startswith("attached:") else digest, command)
        program = self._programs.get(name)
        if program is None:
            if len(self._programs) >= _UNUSED_MAX:
                self._forget_oldest(used)
            program = self._programs[name] = Program(*name)
        return program

    def prepare(self, program: Program) -> None:
        """Have the archive made ready, unless it is ready, or is being made so already."""
        states = {
            other.state
            for other in self
            if other is not program and other.digest == program.digest
        }
        if ProgramState.PREPARED in states:
            program.enter("prepared")
            return
        program.enter("wanted")
        if ProgramState.PREPARING not in states:
            self._outbox.append(PrepareProgram(program.digest, program.command))

    def prepared(self, digest: str) -> None:
        """Note that an archive is ready."""
        for program in self._preparing(digest):
            program.enter("prepared")

    def not_prepared(self, digest: str, now_ms: int) -> list[Program]:
        """Note that an archive can't be made ready; return the programs in it.

        The next task tries again at once. For tasks that wait for inputs it is tried
        again after a pause.
        """
        found = self._preparing(digest)
        for program in found:
            program.enter("not prepared")
            pause_ms = self._settings.node_restart_pause_max_ms
            self._timers.start(now_ms + pause_ms, partial(self._prepare_late, program))
        return found

    def _preparing(self, digest: str) -> list[Program]:
        return [
            program
            for program in self
            if program.digest == digest and program.state is ProgramState.PREPARING
        ]

    def _prepare_late(self, program: Program, _now_ms: int) -> None:
        if program.tasks and program.state is ProgramState.UNKNOWN:
            self.prepare(program)

    def forget(self, digest: str, used: Iterable[Program]) -> bool:
        """Forget the programs of an archive, unless one is in use; return False if one is.

        Args:
            used: Programs of jobs; they must not be forgotten.
        """
        kept = {id(program) for program in used}
        names = [name for name, program in self._programs.items() if program.digest == digest]
        for name in names:
            program = self._programs[name]
            is_preparing = program.state is ProgramState.PREPARING
            if program.tasks or program.nodes or is_preparing or id(program) in kept:
                return False
        for name in names:
            del self._programs[name]
        return True

    def _forget_oldest(self, used: Iterable[Program]) -> None:
        kept = {id(program) for program in used}
        for name, program in self._programs.items():
            if not (program.tasks or program.nodes or id(program) in kept):
                del self._programs[name]
                return
