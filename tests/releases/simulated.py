"""Records the log of one seed of the simulator, by the code in the working directory.

A program that is run in the checkout of a release; it imports that checkout's tests.
"""

from __future__ import annotations

import json
import sys
from typing import Any

__all__: list[str] = []


def record(seed: int) -> dict[str, Any]:
    """Run a seed, and return the log as any of its replicas applied it."""
    from tasksprint.coordination.schedule import Schedule
    from tests.simulation.whole import run_whole

    log: dict[str, Any] = {}
    entries: dict[int, Any] = {}
    make, apply = Schedule.__init__, Schedule.apply

    def made(self: Schedule, **options: Any) -> None:
        log.update(cluster=options["cluster"], members=list(options["members"]))
        log["rules"] = options["rules"].version
        assert not options.get("skips"), "an operator left a command out"
        make(self, **options)

    def applied(
        self: Schedule, slot: Any, commands: Any, *, members: Any = None, **alone: bool
    ) -> Any:
        result = apply(self, slot, commands, members=members, **alone)
        texts = [command.decode("utf-8", "surrogateescape") for command in commands]
        entry = [texts, None if members is None else list(members)]
        entry += [True] if alone.get("is_alone") else []
        assert entries.setdefault(slot, (entry, self.digest)) == (entry, self.digest)
        return result

    Schedule.__init__, Schedule.apply = made, applied  # type: ignore[method-assign]
    outcome = run_whole(seed)
    assert outcome.violation is None, outcome.violation
    ordered = [entries[slot] for slot in range(1, len(entries) + 1)]
    return {
        **log,
        "entries": [entry for entry, _ in ordered],
        "digests": [digest for _, digest in ordered],
    }


if __name__ == "__main__":
    sys.path.insert(0, "")  # before this checkout, should it be installed
    json.dump(record(int(sys.argv[1])), sys.stdout)
