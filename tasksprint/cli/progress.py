"""How a job goes, while one waits for its end: a line each second, a bar on a terminal, or JSON.

`Progress` keeps the observations of the job with their times. It is told the time, asks nobody,
and writes to one stream. All that it says is true at that moment: it doesn't show counts older
than two seconds as if they were of now.
"""

from __future__ import annotations

import shutil
from collections import deque
from typing import Any, TextIO

from tasksprint.asking.cluster import JobOutcome
from tasksprint.cli.failure_text import failure_block, failure_line
from tasksprint.next_steps import as_started, program_command
from tasksprint.plain_text import plain_line, plain_lines
from tasksprint.process.terminal import event_line

__all__ = ["Progress", "counted", "counts_in_words", "with_hint"]

# Older observations aren't shown as if they were still true.
_FRESH_S = 2.0
# Something that stands in the way for a shorter time is mostly gone when it is read.
_OBSTACLE_S = 0.9
# A line each second doesn't say each second at length what it said before.
_TOLD_AGAIN_S = 10.0
# After this it says since when nothing has changed.
_UNCHANGED_S = 2.0
# The rate is that of the last so many seconds.
_RATE_SPAN_S = 20.0
_BAR_COLUMNS = 24
# At most so many failures are shown in one second.
_FAILURES_MAX = 20

# Obstacles of tasks that clients have: none of those runs.
_STALLS = ("fetching", "preparing", "disk", "crashing", "starting", "queued")

_CLEAR_LINE = "\r\x1b[K"


def counted(number: int, name: str, plural: str = "") -> str:
    """Return "1 client" or "2 clients"."""
    return f"{number} {name if number == 1 else plural or name + 's'}"


def counts_in_words(tasks: dict[str, int], obstacle: dict[str, str] | None = None) -> str:
    """Return e.g. "3 of 8 tasks done, 2 running, 3 waiting".

    Args:
        obstacle: Why the job waits. Tasks that clients have but can't run don't count as running.
    """
    is_stalled = obstacle is not None and obstacle["kind"] in _STALLS
    total = sum(tasks.values())
    if total == 0:
        return "no tasks yet"
    parts = [f"{tasks.get('done', 0)} of {total} tasks done"]
    for state in ("assigned", "ready", "waiting", "failed", "killed"):
        if tasks.get(state):
            name = state
            if state == "assigned":
                name = "handed out" if is_stalled else "running"
            parts.append(f"{tasks[state]} {name}")
    return ", ".join(parts)


def with_hint(told: dict[str, Any]) -> str:
    """Return a line about a job for people, and a hint at what can be done."""
    hint = f"; {as_started(told['hint'])}" if told["hint"] else ""
    return str(told["text"]) + hint


class Progress:
    """Tells on a stream how one job goes.

    Args:
        as_json: Write each thing that happens as a line of JSON, for programs.
        with_hints: Say what can be done about an obstacle.
    """

    def __init__(
        self, stream: TextIO, *, now_s: float, as_json: bool = False, with_hints: bool = True
    ) -> None:
        self._stream = stream
        self._as_json = as_json
        self._with_hints = with_hints
        self._has_bar = stream.isatty() and not as_json
        self._outcome: JobOutcome | None = None
        self._seen_s = now_s  # when `_outcome` was so
        self._changed_s = now_s  # when its counts were seen to change
        self._obstacle: tuple[str, float] | None = None  # its kind, and since when
        self._told: tuple[str, float] | None = None  # the last obstacle told in full, and when
        # The last long-running task that was told in full, with its hint, and when.
        self._run_told: tuple[tuple[int, str], float] | None = None
        self._done: deque[tuple[float, int]] = deque()  # (when, tasks done)
        self._lost: tuple[float, str] | None = None  # since when nobody answers, and why
        self._lost_told_s: float | None = None  # when that was told last
        self.line_due_s = now_s  # `tell` has something to say, even if nothing happens
        self._failures_left = _FAILURES_MAX
        self._unshown = 0  # failures

    # --- what happens ---

    def stands(self, outcome: JobOutcome, now_s: float) -> None:
        """Take how the job stands now."""
        before = self._outcome
        if before is None or before.tasks != outcome.tasks:
            self._changed_s = now_s
        kind = None if outcome.obstacle is None else outcome.obstacle["kind"]
        if kind is None:
            self._obstacle = self._told = None
        elif self._obstacle is None or self._obstacle[0] != kind:
            self._obstacle = (kind, now_s)
        self._outcome, self._seen_s, self._lost = outcome, now_s, None
        self._lost_told_s = None
        self._done.append((now_s, outcome.tasks.get("done", 0)))
        while len(self._done) > 2 and now_s - self._done[0][0] > _RATE_SPAN_S:
            self._done.popleft()

    def unanswered(self, cause: str, now_s: float) -> None:
        """Note that no coordinator answers, and why."""
        since_s = self._lost[0] if self._lost is not None else self._seen_s
        self._lost = (since_s, cause)

    def logged(self, text: str) -> None:
        """Show a line that the scheduler logged."""
        self._say({"event": "log", "text": text}, f"log: {plain_line(text)}")

    def failed(self, failure: dict[str, Any], *, in_full: bool) -> None:
        """Show a failed attempt; `in_full`: with all that is known of it."""
        if not self._as_json and not self._failures_left:
            self._unshown += 1
            return
        self._failures_left -= 1
        text = plain_lines(failure_line(failure))
        if in_full:
            text += "\n" + plain_lines(failure_block(failure))
        self._say({"event": "failure", **failure}, text)

    def missed(self, failures: int) -> None:
        """Note failures that weren't kept for long enough to be seen."""
        self._say(
            {"event": "missed", "failures": failures},
            f"{failures} earlier failures aren't kept any more",
        )

    def printed(self, cid: int, tid: int, attempt: int, text: str) -> None:
        """Show a node's lines on stderr."""
        shown = "\n".join(
            f"task {tid} on client {cid}: {line}" for line in plain_lines(text).splitlines()
        )
        fields = {"event": "stderr", "cid": cid, "tid": tid, "attempt": attempt, "text": text}
        self._say(fields, shown)

    # --- the line ---

    def tell(self, now_s: float) -> None:
        """Tell how the job stands; call it each second."""
        self.line_due_s = now_s + 1.0
        self._failures_left = _FAILURES_MAX
        if self._unshown:
            unshown, self._unshown = self._unshown, 0
            shows = f"'{program_command('logs')}' shows those of a task"
            self._say({}, f"{unshown} more failures; {shows}")
        outcome = self._outcome
        if outcome is None and self._lost is None:
            return
        if self._as_json:
            self._say(self._fields(now_s), "")
        elif self._has_bar:
            columns = shutil.get_terminal_size().columns - 1
            self._stream.write(f"{_CLEAR_LINE}{self._line(now_s)[:columns]}")
        elif self._lost is None or self._lost_told_s is None:
            self._lost_told_s = None if self._lost is None else now_s
            self._stream.write(self._line(now_s) + "\n")
        elif now_s - self._lost_told_s >= _TOLD_AGAIN_S:
            self._lost_told_s = now_s
            self._stream.write(f"still no answer for {now_s - self._lost[0]:.0f} s\n")
        self._stream.flush()

    def end(self) -> None:
        """Leave the line that was rewritten."""
        if self._has_bar:
            self._stream.write("\n")
            self._stream.flush()

    def _fields(self, now_s: float) -> dict[str, Any]:
        fields: dict[str, Any] = {"event": "progress"}
        outcome = self._outcome
        if outcome is not None:
            fields |= {
                "job": outcome.job,
                "state": outcome.state,
                "seconds": round(outcome.seconds, 3),
                "tasks": outcome.tasks,
                "obstacle": outcome.obstacle,
                "long_run": outcome.long_run,
            }
        if self._lost is not None:
            seconds = round(now_s - self._lost[0], 1)
            fields["unanswered"] = {"seconds": seconds, "cause": self._lost[1]}
        return fields

    def _line(self, now_s: float) -> str:
        outcome = self._outcome
        seconds = 0.0 if outcome is None else outcome.seconds
        if outcome is None or outcome.state == "running":
            seconds += now_s - self._seen_s
        head = f"[{seconds:6.1f} s] "
        if self._lost is not None:
            since_s, cause = self._lost
            text = f"{head}no answer for {now_s - since_s:.0f} s: {plain_line(cause)}"
            if outcome is not None:
                text += "; the job isn't lost: waiting for an answer"
            return text
        assert outcome is not None
        if now_s - self._seen_s > _FRESH_S and outcome.state == "running":
            return f"{head}no answer for {now_s - self._seen_s:.0f} s"
        obstacle = outcome.obstacle
        text = counts_in_words(outcome.tasks, obstacle)
        is_stuck = self._obstacle is not None and now_s - self._obstacle[1] >= _OBSTACLE_S
        unchanged_s = now_s - self._changed_s
        if outcome.state == "running":
            if obstacle is not None and is_stuck:
                text += self._waits(obstacle, now_s)
            elif outcome.tasks.get("assigned") and unchanged_s >= _UNCHANGED_S:
                text += f", unchanged for {unchanged_s:.0f} s"
                text += self._runs_long(outcome.long_run, now_s, is_still=True)
            else:
                text += self._rate(outcome)
                text += self._runs_long(outcome.long_run, now_s, is_still=False)
        if self._has_bar and outcome.tasks:
            total, done = sum(outcome.tasks.values()), outcome.tasks.get("done", 0)
            filled = _BAR_COLUMNS * done // total if total else 0
            return f"{head}|{'#' * filled}{'-' * (_BAR_COLUMNS - filled)}| {text}"
        return head + text

    def _waits(self, obstacle: dict[str, str], now_s: float) -> str:
        """Return what the job waits for: at once in full, later in short, now and then again."""
        text = with_hint(obstacle) if self._with_hints else obstacle["text"]
        if not self._has_bar and self._told is not None:
            told, at_s = self._told
            if told == obstacle["kind"] and now_s - at_s < _TOLD_AGAIN_S:
                return "; still waiting for that"
        self._told = (obstacle["kind"], now_s)
        return f"; {plain_line(text)}"

    def _runs_long(self, run: dict[str, Any] | None, now_s: float, *, is_still: bool) -> str:
        """Return which task runs for long: if nothing moves (`is_still`), or others were quick.

        In full now and then; between that in short, and only if nothing moves.
        """
        if run is None or not (is_still or run["is_unlike"]):
            return ""
        if not self._has_bar and self._run_told is not None:
            told, at_s = self._run_told
            if told == (run["tid"], run["hint"]) and now_s - at_s < _TOLD_AGAIN_S:
                return f": task {run['tid']} on client {run['cid']}" if is_still else ""
        self._run_told = ((run["tid"], run["hint"]), now_s)
        return f"; {plain_line(with_hint(run))}"

    def _rate(self, outcome: JobOutcome) -> str:
        """Return how fast tasks are done, and how long the known ones would take yet."""
        (first_s, first), (last_s, last) = self._done[0], self._done[-1]
        if last_s - first_s < 1.0 or last <= first:
            return ""
        rate = (last - first) / (last_s - first_s)
        tasks = outcome.tasks
        left = sum(tasks.get(state, 0) for state in ("waiting", "ready", "assigned"))
        if not left:
            return ""
        shown = f"{rate:.1f}" if rate < 100 else f"{rate:.0f}"
        return f", {shown}/s, {_duration(left / rate)} left"

    def _say(self, fields: dict[str, Any], text: str) -> None:
        """Write one thing that happened, above the bar if there is one."""
        if self._as_json:
            if fields:
                self._stream.write(event_line(fields) + "\n")
        else:
            self._stream.write(f"{_CLEAR_LINE if self._has_bar else ''}{text}\n")
        self._stream.flush()


def _duration(seconds: float) -> str:
    """Return e.g. "40 s", "12 min" or "3.5 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6_000 else f"{seconds / 3_600:.1f} h"
