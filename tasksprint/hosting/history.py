"""The part of a job's history that a scheduler host has in memory.

History may be longer than memory. The mirror has all of it. Here is a run of event lines,
with the digests of the chosen answers to them. The run begins at about the oldest event that
a message may have to name. If it doesn't reach the job's last event, `read` names the next
events to read. A replay from the beginning reads page by page.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence

from tasksprint.errors import LocalProtocolError
from tasksprint.ids import JobId

__all__ = ["History"]

MIB = 1024 * 1024
# Answered lines leave memory only if all lines have more bytes than this: so the schedulers
# of small jobs replay without reading anything.
HISTORY_BYTES = 1 * MIB
# New events are taken as they come, up to so many bytes. The others are read later.
LINES_BYTES_MAX = 32 * MIB
# Events that are read at once.
READ_EVENTS_MAX = 2_000
# Lines leave the run so many at a time.
TRIM_LINES_MIN = 256


class History:
    """A run of lines, `first_event <= event < end_event`, of a job with `event_count` events.

    Args:
        lines: The first events, as many as are at hand.
        answers: (event, part) -> digest of the chosen answers to them.
        event_count: The number of events that there are; None: as many as `lines`.
    """

    def __init__(
        self,
        job: JobId,
        lines: Sequence[bytes],
        answers: Mapping[tuple[int, int], str],
        event_count: int | None,
    ) -> None:
        self._job = job
        self.lines = list(lines)
        self.first_event = 0
        self._bytes = sum(map(len, self.lines))
        self.event_count = len(self.lines) if event_count is None else event_count
        # At least of all chosen answers to the events of the run.
        self.answers = dict(answers)
        self._answered = deque(answers)  # their keys
        self._read_number = 0
        self._read_end = 0  # end of the events being read; 0: none are

    @property
    def end_event(self) -> int:
        """First event that isn't in memory."""
        return self.first_event + len(self.lines)

    def line(self, event: int) -> bytes:
        """Return the line of an event of the run."""
        return self.lines[event - self.first_event]

    def slice(self, first_event: int, end_event: int) -> list[bytes]:
        """Return some lines of the run."""
        return self.lines[first_event - self.first_event : end_event - self.first_event]

    # --- growing ---

    def add(self, lines: list[bytes], *, is_wanted: bool) -> None:
        """Count the job's next events, and take their lines if there is room behind the run."""
        is_next = self.end_event == self.event_count
        self.event_count += len(lines)
        if is_next and is_wanted and self._bytes < LINES_BYTES_MAX:
            self._take(lines)

    def _take(self, lines: list[bytes]) -> None:
        self.lines += lines
        self._bytes += sum(map(len, lines))

    def answer_chosen(self, place: tuple[int, int], digest: str) -> None:
        """Keep a digest, unless it will be read together with its event's line."""
        # For events that are being read, too: they may have been read before the answer was
        # chosen.
        if place[0] < max(self.end_event, self._read_end):
            self._note(place, digest)

    def _note(self, place: tuple[int, int], digest: str) -> None:
        if place not in self.answers:
            self._answered.append(place)
        self.answers[place] = digest

    # --- reading ---

    def read(self, sent_end: int, window_events: int) -> tuple[int, int, int] | None:
        """Return (number, first_event, end_event) to read now; None: nothing.

        Args:
            sent_end: First event that the process hasn't been sent.
            window_events: The number of events that the run should reach beyond it.
        """
        first = self.end_event
        if (
            self._read_end
            or first == self.event_count
            or first - sent_end >= window_events
            or self._bytes >= LINES_BYTES_MAX
        ):
            return None
        self._read_number += 1
        self._read_end = min(first + READ_EVENTS_MAX, self.event_count)
        return self._read_number, first, self._read_end

    def page_read(
        self, number: int, lines: Sequence[bytes], answers: Iterable[tuple[int, int, str]]
    ) -> None:
        """Take the lines and digests that were read; see `SchedulerHost.history_read`."""
        if number != self._read_number or not self._read_end:
            return
        if not lines:
            raise LocalProtocolError(f"the mirror lacks event {self.end_event} of job {self._job}")
        self._read_end = 0
        # The mirror may know more events than this replica's scheduler was told.
        self._take(list(lines[: self.event_count - self.end_event]))
        for event, part, digest in answers:
            if event < self.end_event:
                self._note((event, part), digest)

    # --- shrinking ---

    def trim(self, keep_from: int) -> None:
        """Let lines before an event go, if there are many."""
        count = keep_from - self.first_event
        if self._bytes <= HISTORY_BYTES or count < TRIM_LINES_MIN:
            return
        self._bytes -= sum(map(len, self.lines[:count]))
        del self.lines[:count]
        self.first_event += count
        answered, answers = self._answered, self.answers
        while answered and answered[0][0] < self.first_event:
            del answers[answered.popleft()]

    def rewind(self) -> None:
        """Begin at event 0 again, for a new run of the process."""
        if self.first_event:
            self.lines.clear()
            self.first_event = self._bytes = self._read_end = 0
            self.answers.clear()
            self._answered.clear()

    def check(self) -> None:
        """Assert the invariants."""
        assert self.end_event <= self.event_count
        assert self._bytes == sum(map(len, self.lines))
        assert len(self._answered) == len(self.answers)
