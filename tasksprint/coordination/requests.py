"""Records of applied requests, so that each request counts once.

A log can lose request n and keep n+1, and a sender repeats a request that got no answer. So
a record keeps each applied number above the low-water mark that the sender acknowledges, and
not only the highest. Records expire by log time, in a tick.
"""

from __future__ import annotations

from typing import Any

from tasksprint.coordination.rows import Row
from tasksprint.encoding import encode_json

__all__ = ["TOO_OLD", "Sender", "Senders", "sender_from_row", "sender_row"]


# For a request below the low-water mark. The sender acknowledged it, or it fell behind too many
# later ones: then it may be new.
TOO_OLD = (
    '{"error":"it isn\'t known any more whether this request was carried out: its sender made '
    'too many later ones since"}'
)


class Sender:
    """The replies to one sender's applied requests."""

    __slots__ = ("highest", "low", "name", "replies", "used_ms")

    def __init__(self, name: str) -> None:
        self.name = name
        self.low = 0  # requests below this one won't be repeated
        self.highest = 0  # the highest applied one
        self.replies: dict[int, str] = {}  # request: reply (JSON); Invariant: >= low
        self.used_ms = 0  # log time of the last request


class Senders:
    """All records, in the order in which they were last used.

    Args:
        replies_max: The number of replies kept for one sender: those with the highest numbers.
    """

    __slots__ = ("_by_name", "replies_max")

    def __init__(self, replies_max: int) -> None:
        self._by_name: dict[str, Sender] = {}
        self.replies_max = replies_max

    def __len__(self) -> int:
        return len(self._by_name)

    def __iter__(self) -> Any:
        return iter(self._by_name.values())

    def add(self, sender: Sender) -> None:
        """Add a restored record; they come in the order of their last use."""
        self._by_name[sender.name] = sender

    def get(self, name: str) -> Sender | None:
        """Return the record, if there is one."""
        return self._by_name.get(name)

    def find_reply(self, name: str, request: int) -> str | None:
        """Return the reply to an applied request; None: it is new.

        For a request below the low-water mark it is `TOO_OLD`.
        """
        sender = self._by_name.get(name)
        if sender is None:
            return None
        if request < sender.low:
            return TOO_OLD
        return sender.replies.get(request)

    def record(
        self, name: str, request: int, acknowledged: int, reply: str, now_ms: int
    ) -> Sender:
        """Keep the reply to a request that was applied now; return the record to be saved."""
        sender = self._by_name.pop(name, None)
        if sender is None:
            sender = Sender(name)
        self._by_name[name] = sender
        sender.used_ms = now_ms
        replies = sender.replies
        replies[request] = reply
        if request > sender.highest:
            sender.highest = request
        if acknowledged > sender.low:
            sender.low = acknowledged
            for old in [number for number in replies if number < acknowledged]:
                del replies[old]
        if len(replies) > self.replies_max:
            oldest = min(replies)
            del replies[oldest]
            sender.low = max(sender.low, oldest + 1)
        return sender

    def remove(self, name: str) -> bool:
        """Forget a record; whether there was one."""
        return self._by_name.pop(name, None) is not None

    def remove_before(self, used_ms: int, records_max: int) -> list[str]:
        """Forget the records that weren't used since `used_ms`, and the oldest beyond so many.

        Returns:
            Their names, sorted.
        """
        names: list[str] = []
        last_ms = -1
        for sender in self._by_name.values():
            # Records of one time go together: a restored replica knows no order among them.
            is_too_many = len(self._by_name) - len(names) > records_max
            if sender.used_ms >= used_ms and sender.used_ms != last_ms and not is_too_many:
                break
            last_ms = sender.used_ms
            names.append(sender.name)
        for name in names:
            del self._by_name[name]
        return sorted(names)


def sender_row(sender: Sender) -> Row:
    """Return the record's row as it is now."""
    replies = [[request, reply] for request, reply in sender.replies.items()]
    body = (sender.used_ms, sender.low, sender.highest, replies)
    return Row("senders", (sender.name,), (encode_json(body).decode(),))


def sender_from_row(name: str, body: list[Any]) -> Sender:
    """Return a record from its row."""
    sender = Sender(name)
    sender.used_ms, sender.low, sender.highest, replies = body
    sender.replies = {request: reply for request, reply in replies}
    return sender
