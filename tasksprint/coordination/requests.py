"""Records of applied requests, so that each request counts once.

A log can lose request n and keep n+1, and a sender repeats what it got no answer to; so
a record keeps each applied number above the low-water mark that the sender
acknowledges, never only the highest. Records expire by log time, in a tick.
"""

from __future__ import annotations

from typing import Any

from tasksprint.coordination.rows import Row
from tasksprint.encoding import encode_json

__all__ = ["Sender", "Senders", "restore_sender", "sender_row"]


class Sender:
    """What one sender's applied requests were answered with."""

    __slots__ = ("highest", "low", "name", "replies", "used_ms")

    def __init__(self, name: str) -> None:
        self.name = name
        self.low = 0  # requests below this one won't be repeated
        self.highest = 0  # the highest applied one
        self.replies: dict[int, str] = {}  # request: reply (JSON); Invariant: >= low
        self.used_ms = 0  # log time of the last request


class Senders:
    """All records, in the order in which they were last used."""

    __slots__ = ("_by_name",)

    def __init__(self) -> None:
        self._by_name: dict[str, Sender] = {}

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
        """Return what an applied request was answered with; None: it is new.

        A request below the low-water mark was acknowledged: nobody waits for this reply.
        """
        sender = self._by_name.get(name)
        if sender is None:
            return None
        if request < sender.low:
            return '{"error":"this request was answered and acknowledged before"}'
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
        return sender

    def remove(self, name: str) -> bool:
        """Forget a record; whether there was one."""
        return self._by_name.pop(name, None) is not None

    def remove_before(self, used_ms: int) -> list[str]:
        """Forget all that weren't used since; return their names, sorted."""
        names: list[str] = []
        for sender in self._by_name.values():
            if sender.used_ms >= used_ms:
                break
            names.append(sender.name)
        for name in names:
            del self._by_name[name]
        return sorted(names)


def sender_row(sender: Sender) -> Row:
    """Return the record's row as it is now."""
    replies = [[request, reply] for request, reply in sender.replies.items()]
    body = (sender.used_ms, sender.low, sender.highest, replies)
    return Row("senders", (sender.name,), (encode_json(body).decode(),))


def restore_sender(name: str, body: list[Any]) -> Sender:
    """Return a record from its row."""
    sender = Sender(name)
    sender.used_ms, sender.low, sender.highest, replies = body
    sender.replies = {request: reply for request, reply in replies}
    return sender
