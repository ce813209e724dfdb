"""The reports to the coordinator, and their order.

Knows completions, failures and lost results; doesn't know how a report travels.
Three rules hold here:

- A completion is reported only once its values are stored. A coordinator relies on holders,
  and kill -9 must not take the values away.
- If a completion consumed a value made here, it is reported after the completion of that
  value. A report is applied in order, and a completion whose inputs aren't canonical yet is
  void.
- One report is under way at a time; what comes meanwhile goes into the next one. So batches
  form behind a slow coordinator, and no report ever overtakes another.
"""

from __future__ import annotations

from collections import deque

from tasksprint.encoding import encode_json
from tasksprint.execution.effects import AttemptDone, AttemptFailed, Effect, SendReport
from tasksprint.execution.records import Key
from tasksprint.ids import Incarnation
from tasksprint.settings import Settings

__all__ = ["Reports"]


class _Unstored:
    """A completion that waits: its own values, or those of a pretask, aren't stored yet."""

    __slots__ = ("completion", "followers", "inline_bytes", "is_stored", "key", "pretasks")

    def __init__(
        self, key: Key, completion: AttemptDone, inline_bytes: int, pretasks: tuple[Key, ...]
    ) -> None:
        self.key = key
        self.completion = completion
        self.inline_bytes = inline_bytes
        self.pretasks = pretasks  # it consumed their results, and they were made here
        self.is_stored = False
        self.followers: list[_Unstored] = []  # stored, and waiting for this one


class Reports:
    """The queue of news for the coordinator, and the report under way."""

    def __init__(
        self, settings: Settings, outbox: list[Effect], incarnation: Incarnation
    ) -> None:
        self._incarnation = incarnation
        self._tasks_max = settings.report_tasks_max
        self._inline_bytes_max = settings.report_inline_bytes_max
        self._outbox = outbox
        self._unstored: dict[Key, _Unstored] = {}
        self._completions: dict[Key, tuple[AttemptDone, int]] = {}  # in order; with inline bytes
        self._failures: deque[tuple[AttemptFailed, int]] = deque()  # with its bytes
        self._lost: dict[Key, None] = {}
        self._under_way: int | None = None
        self._failures_sent: tuple[AttemptFailed, ...] = ()  # in that report
        self._last_request = 0

    @property
    def under_way(self) -> int | None:
        """The number of the report that waits for its acknowledgement, or None."""
        return self._under_way

    @property
    def waiting(self) -> int:
        """The number of completions and failures that are in no report yet."""
        return len(self._unstored) + len(self._completions) + len(self._failures)

    def add_completion(
        self, completion: AttemptDone, inline_bytes: int, pretasks: tuple[Key, ...]
    ) -> None:
        """Report this once it and the `pretasks` (values made here) are stored."""
        key = (completion.job, completion.tid)
        # An older attempt's completion must not be sent any more: these values replace its own.
        self._completions.pop(key, None)
        older = self._unstored.get(key)
        new = _Unstored(key, completion, inline_bytes, pretasks)
        if older is not None:
            new.followers = older.followers
        self._unstored[key] = new

    def stored(self, key: Key, attempt: int) -> None:
        """Note that this attempt's values survive a crash of the client."""
        unstored = self._unstored.get(key)
        if unstored is None or unstored.completion.attempt != attempt:
            return
        unstored.is_stored = True
        self._settle(unstored)

    def add_failure(self, failure: AttemptFailed) -> None:
        """Report a failed attempt."""
        size = len(encode_json([failure.error, failure.detail]))
        self._failures.append((failure, size))

    def add_lost(self, key: Key) -> None:
        """Report that a holder no longer has this result."""
        self._lost[key] = None

    def discard(self, key: Key) -> bool:
        """Forget a completion whose values are gone; False: none is waiting."""
        waiting = self._completions.pop(key, None)
        unstored = self._unstored.pop(key, None)
        if unstored is not None:
            for follower in unstored.followers:
                self._settle(follower)
        return waiting is not None or unstored is not None

    def discard_job(self, job: int) -> None:
        """Forget all unsent news of a job that ended."""
        for key in [key for key in self._completions if key[0] == job]:
            del self._completions[key]
        for key in [key for key in self._unstored if key[0] == job]:
            del self._unstored[key]
        self._failures = deque([item for item in self._failures if item[0].job != job])
        for key in [key for key in self._lost if key[0] == job]:
            del self._lost[key]

    def acknowledged(self, request: int) -> tuple[AttemptFailed, ...]:
        """Note that a report was applied; return the failures that stood in it.

        A report that isn't under way is ignored.
        """
        if request != self._under_way:
            return ()
        self._under_way = None
        failures, self._failures_sent = self._failures_sent, ()
        return failures

    def reset(self, incarnation: Incarnation) -> None:
        """Forget everything: the coordinator knows a new incarnation from now on."""
        self._incarnation = incarnation
        self._last_request = 0
        self._unstored.clear()
        self._completions.clear()
        self._failures.clear()
        self._lost.clear()
        self._under_way = None
        self._failures_sent = ()

    def flush(self) -> None:
        """Send the next report, if none is under way and there is something to say."""
        if self._under_way is not None:
            return
        if not (self._completions or self._failures or self._lost):
            return
        completions: list[AttemptDone] = []
        inline_bytes = 0
        for completion, size in self._completions.values():
            inline_bytes += size
            # The first one always goes, however big: its size is limited elsewhere.
            if completions and inline_bytes > self._inline_bytes_max:
                break
            if len(completions) == self._tasks_max:
                break
            completions.append(completion)
        if len(completions) == len(self._completions):
            self._completions.clear()
        else:
            for completion in completions:
                del self._completions[completion.job, completion.tid]
        failures: list[AttemptFailed] = []
        failure_bytes = 0
        while self._failures and len(failures) < self._tasks_max:
            failure, size = self._failures[0]
            failure_bytes += size
            if failures and failure_bytes > self._inline_bytes_max:
                break  # Tracebacks and output: a thousand of them are no small command.
            self._failures.popleft()
            failures.append(failure)
        lost = tuple(self._lost)[: self._tasks_max]
        for key in lost:
            del self._lost[key]
        self._last_request += 1
        self._under_way = self._last_request
        self._failures_sent = tuple(failures)
        self._outbox.append(
            SendReport(
                self._incarnation,
                self._last_request,
                tuple(completions),
                tuple(failures),
                lost,
            )
        )

    def check(self) -> None:
        """Assert the invariants."""
        for key, unstored in self._unstored.items():
            assert unstored.key == key
            assert key not in self._completions, f"{key} is both stored and not"
            for follower in unstored.followers:
                assert follower.is_stored, f"{follower.key} waits for {key} and isn't stored"
            if unstored.is_stored:
                assert any(pretask in self._unstored for pretask in unstored.pretasks), (
                    f"{key} is stored and waits for nothing"
                )

    def _settle(self, unstored: _Unstored) -> None:
        """Queue a stored completion and those that waited for it, unless it waits itself."""
        todo = [unstored]
        while todo:
            one = todo.pop()
            if self._unstored.get(one.key) is not one:
                continue  # Replaced or discarded meanwhile.
            for pretask in one.pretasks:
                blocker = self._unstored.get(pretask)
                if blocker is not None and blocker is not one:
                    blocker.followers.append(one)
                    break
            else:
                del self._unstored[one.key]
                self._completions[one.key] = (one.completion, one.inline_bytes)
                todo.extend(reversed(one.followers))
