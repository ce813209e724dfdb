"""One PySyncObj member: run by a Python that has it, commanded by lines on stdin.

    pysyncobj_member.py INDEX DIRECTORY batched|direct PORT,PORT,PORT

batched: journal and dump file, all else its defaults (entries leave each 100 ms).
direct: entries leave at once (appendEntriesUseBatch=False). It has no network front. So the
submitters live in the leader's process: it is spared the cost of HTTP.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from typing import Any

from pysyncobj import SyncObj, SyncObjConf, replicated  # type: ignore[import-not-found]


class Table(SyncObj):  # type: ignore[misc]
    """A replicated dictionary."""

    def __init__(self, me: str, others: list[str], conf: Any) -> None:
        super().__init__(me, others, conf)
        self.rows: dict[str, str] = {}

    @replicated  # type: ignore[untyped-decorator]
    def put(self, key: str, value: str) -> None:
        """Change one row."""
        self.rows[key] = value


def closed_loop(table: Table, submitters: int, seconds: float, warm_up_s: float) -> dict[str, Any]:
    """Let each submitter put again in the callback of its last put."""
    now = time.perf_counter_ns
    begin_ns = now() + int(warm_up_s * 1e9)
    end_ns = begin_ns + int(seconds * 1e9)
    latencies: list[int] = []
    errors = 0
    left = submitters
    done = threading.Event()
    value = "v" * 256

    def submit(index: int, number: int) -> None:
        sent_ns = now()

        def answered(result: Any, error: Any) -> None:
            nonlocal errors, left
            got_ns = now()
            if error:
                errors += 1
            elif got_ns >= begin_ns:
                latencies.append(got_ns - sent_ns)
            if got_ns < end_ns:
                submit(index, number + 1)
                return
            left -= 1
            if not left:
                done.set()

        table.put(f"{index} {number % 100}", value, callback=answered)

    for index in range(submitters):
        submit(index, 0)
    done.wait(seconds + warm_up_s + 60)
    ordered = sorted(latencies) or [0]
    return {
        "per_s": round(len(latencies) / seconds, 1),
        "p50_ms": round(ordered[len(ordered) // 2] / 1e6, 3),
        "p99_ms": round(ordered[len(ordered) * 99 // 100] / 1e6, 3),
        "errors": errors,
    }


def main(index: int, directory: str, mode: str, ports: list[int]) -> None:
    """Answer a line of JSON for each line."""
    addresses = [f"127.0.0.1:{port}" for port in ports]
    conf = SyncObjConf(
        journalFile=f"{directory}/m{index}.journal",
        fullDumpFile=f"{directory}/m{index}.dump",
        appendEntriesUseBatch=mode == "batched",
    )
    me = addresses[index]
    table = Table(me, [other for other in addresses if other != me], conf)
    for line in sys.stdin:
        words = json.loads(line)
        if words[0] == "leader":
            status = table.getStatus()
            answer: Any = {"leader": str(status["leader"]), "me": me}
        else:
            answer = closed_loop(table, *words[1:])
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3], [int(p) for p in sys.argv[4].split(",")])
