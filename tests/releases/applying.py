"""Applies a recorded log by the code of whichever release is first in `sys.path`.

Run as a program it does so by the release that stands in the archive named as its first
argument. It imports nothing of the tests, as it is run without them.
"""

from __future__ import annotations

import hashlib
import json
import sys
from typing import Any

__all__ = ["apply_log", "encode_commands"]

# One of the log: cluster, members, the version of the rules by which it begins (if it isn't
# 1), and for each slot the commands and (where the entry changed them) the members from then
# on; then True, if its command stands alone.
Log = dict[str, Any]


def encode_commands(commands: list[str]) -> tuple[bytes, ...]:
    """Return commands as they stood in the log; a recording keeps them as text."""
    return tuple(command.encode("utf-8", "surrogateescape") for command in commands)


def apply_log(log: Log) -> dict[str, Any]:
    """Return what comes of each entry: the state's digest, and that of all else that counts.

    And, for each job, the lines of its scheduler's events, and the answers that counted.
    """
    from tasksprint.coordination.applied import ChosenAnswer
    from tasksprint.coordination.commands import decode_command
    from tasksprint.coordination.schedule import Schedule

    members = tuple(log["members"])
    schedule = Schedule(cluster=log["cluster"], members=members, rules=_first_rules(log))
    digests: list[list[str]] = []
    events: dict[int, list[str]] = {}
    answers: dict[int, list[list[Any]]] = {}
    kinds: dict[str, int] = {}
    for slot, (texts, members, *alone) in enumerate(log["entries"], 1):
        commands = encode_commands(texts)
        for command in commands:
            name = type(decode_command(command)).__name__
            kinds[name] = kinds.get(name, 0) + 1
        members = None if members is None else tuple(members)
        options = {"is_alone": True} if alone else {}  # (Release 0.2.0 doesn't know it.)
        applied = schedule.apply(slot, commands, members=members, **options)
        outcome = hashlib.sha256()
        for reply in applied.replies:
            outcome.update(b"%d:%b" % (-1 if reply is None else len(reply), reply or b""))
        outcome.update(repr((applied.clients, applied.jobs)).encode())
        for job, event in applied.events:
            events.setdefault(job, []).append(event.line.decode())
            outcome.update(b"%d %d %b\n" % (job, event.number, event.line))
        for job, answer in applied.answers:
            if isinstance(answer, ChosenAnswer):
                said = [answer.event, answer.part, answer.last, answer.digest]
                answers.setdefault(job, []).append(said)
            else:
                for number in range(answer.first_event, answer.end_event):
                    answers.setdefault(job, []).append([number, 0, True, None])
        digests.append([schedule.digest, outcome.hexdigest()])
    schedule.check()
    return {"digests": digests, "events": events, "answers": answers, "kinds": kinds}


def _first_rules(log: Log) -> Any:
    """Return the rules by which a log begins."""
    from tasksprint import settings

    try:
        return settings.RULES_BY_VERSION[log.get("rules", 1)]
    except AttributeError:
        return settings.RULES  # Release 0.2.0 has no others.


def main(archive: str) -> None:
    """Read a log from stdin, and write what an archive's release makes of it."""
    sys.path.insert(0, archive)
    import tasksprint

    assert str(tasksprint.__file__).startswith(archive), tasksprint.__file__
    json.dump(apply_log(json.load(sys.stdin)), sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
