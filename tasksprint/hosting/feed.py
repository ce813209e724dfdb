"""The event lines for a scheduler's process: which it is sent, and when.

The process may have only so many events unanswered. Events that it only repeats come first,
between two control lines.
"""

from __future__ import annotations

from collections import deque

from tasksprint.hosting.history import History

__all__ = ["WINDOW_BYTES", "Feed"]

MIB = 1024 * 1024
# Bytes of events in the pipe unanswered; events with large values are few then.
WINDOW_BYTES = 16 * MIB
REPLAY_LINE = b'{"control":"replay","end_event":%d}\n'
LIVE_LINE = b'{"control":"live"}\n'


class Feed:
    """The lines for one run of the process.

    Args:
        window_events: Events that may be unanswered at once.
    """

    __slots__ = ("_history", "_sent", "_sent_bytes", "_window_events", "replay_end", "sent_end")

    def __init__(self, history: History, window_events: int) -> None:
        self._history = history
        self._window_events = window_events
        self.sent_end = 0  # first event that was not written
        self.replay_end = 0  # first event that is no replay in this run
        self._sent: deque[tuple[int, int]] = deque()  # (end event, bytes) of each write
        self._sent_bytes = 0  # of the events in `_sent`

    @property
    def is_answered(self) -> bool:
        """Whether the process has answered all that it was sent."""
        return not self._sent

    def clear(self) -> None:
        """Begin with event 0 again, for a new run of the process."""
        self.sent_end = self.replay_end = 0
        self._sent.clear()
        self._sent_bytes = 0

    def answered(self, own_event: int) -> None:
        """Take that the process has answered all events before this one."""
        sent = self._sent
        while sent and sent[0][0] <= own_event:
            self._sent_bytes -= sent.popleft()[1]

    def next_read(self) -> tuple[int, int, int] | None:
        """Return what of the history is to be read, so that there are lines; as `History.read`."""
        return self._history.read(self.sent_end, self._window_events)

    def next_lines(self, own_event: int) -> bytes:
        """Return the lines that fit into the pipe now.

        Args:
            own_event: The first that the process hasn't answered.
        """
        first = self.sent_end
        end = min(self._history.end_event, own_event + self._window_events)
        head = b""
        if first == 0 and self.replay_end:
            head = REPLAY_LINE % self.replay_end
        if first < self.replay_end:
            end = min(end, self.replay_end)  # The line "live" comes between.
        if end <= first:
            return b""
        lines = self._history.slice(first, end)
        size = sum(map(len, lines))
        room = WINDOW_BYTES - self._sent_bytes
        if size > room:
            # Rare: large values. Take as many as fit, and at least one if the pipe is empty.
            count = size = 0
            for line in lines:
                if size + len(line) > room and (count or self._sent_bytes):
                    break
                count, size = count + 1, size + len(line)
            if not count:
                return b""
            lines = lines[:count]
            end = first + count
        self._sent.append((end, size))
        self._sent_bytes += size
        self.sent_end = end
        text = b"\n".join(lines) + b"\n"
        if first < self.replay_end == end:
            return head + text + LIVE_LINE + self.next_lines(own_event)
        return head + text

    def check(self, own_event: int) -> None:
        """Assert the invariants."""
        assert own_event <= self.sent_end <= self._history.end_event
        assert self._sent_bytes == sum(size for _, size in self._sent)
