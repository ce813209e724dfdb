"""A job's scheduler lines and failed attempts, from the mirror of this replica.

Both are numbered in their job, and written once. A reader that has seen some asks for those
after them.
"""

from __future__ import annotations

import re
from typing import Any

from tasksprint.encoding import decode_json
from tasksprint.ids import JobId, TaskId
from tasksprint.roles.coordinator.ports import Mirror, Writer
from tasksprint.store.replica_store import ReplicaStore

__all__ = ["JobNotes", "cause_of_end", "task_of_failure"]

# Of one answer; to get more, ask again from the next number on.
_ROWS_MAX = 10_000
_BYTES_MAX = 8 * 1024 * 1024
_NAMED_TASK = re.compile(r"\btask ([0-9]{1,15})\b")


class JobNotes:
    """The lines and failures in one replica's mirror."""

    def __init__(self, mirror: Mirror, writer: Writer) -> None:
        self._mirror = mirror
        self._writer = writer

    async def log_lines(self, job: JobId, first: int = 0) -> list[str]:
        """Return the lines that a job's scheduler logged, from that number on."""
        return [str(line) for (line,) in await self._rows("job_log", job, first)]

    async def failures(
        self, job: JobId, first: int = 0, tid: TaskId | None = None
    ) -> list[dict[str, Any]]:
        """Return the failed attempts that are kept, from that number on: of a task, or of all."""
        found: list[dict[str, Any]] = []
        for of_tid, body in await self._rows("failures", job, first):
            if tid is None or tid == of_tid:
                decoded: Any = decode_json(body.encode())
                found.append(decoded)
        return found

    async def _rows(self, table: str, job: JobId, first: int) -> list[tuple[Any, ...]]:
        """Return the values of a job's numbered rows, the unwritten ones too, in order.

        A reader counts its rows and asks for the next ones. So if a page was cut, no row beyond
        its end is given while others stand between.
        """
        # First these: a row written meanwhile is found twice rather than not at all.
        unwritten = self._mirror.unwritten_rows(table, (job,))
        page, is_cut = await self._writer.run(_read, table, job, first)
        found: dict[int, tuple[Any, ...] | None] = {cells[1]: tuple(cells[2:]) for cells in page}
        end = page[-1][1] + 1 if is_cut else None
        for row in unwritten:
            number = row.key[1]
            if isinstance(number, int) and number >= first and (end is None or number < end):
                found[number] = row.columns
        return [columns for _, columns in sorted(found.items()) if columns is not None]


def cause_of_end(error: str, failures: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the failure that belongs beneath the sentence with which a job failed.

    If the sentence names tasks, this is the failure of the first one, if it is kept. If it names
    none, this is the last failure by which a task was given up.
    """
    final = [failure for failure in failures if failure["final"]]
    if (named := _NAMED_TASK.search(error.partition("\n")[0])) is not None:
        final = [failure for failure in final if failure["tid"] == int(named[1])]
    return final[-1] if final else None


def _read(store: ReplicaStore, table: str, job: JobId, first: int) -> tuple[list[Any], bool]:
    """Return a page of rows, and whether there are more behind it."""
    end = (job + 1,)
    page: list[Any] = store.read_page(
        table, (job, first), end, rows_max=_ROWS_MAX, bytes_max=_BYTES_MAX
    )
    if not page:
        return page, False
    behind = (job, page[-1][1] + 1)
    return page, bool(store.read_page(table, behind, end, rows_max=1, bytes_max=0))


def task_of_failure(job: JobId, failure: dict[str, Any]) -> dict[str, Any]:
    """Return the state of a task that isn't in memory any more, by its last failure."""
    return {
        "job": job,
        "tid": failure["tid"],
        "name": failure["name"],
        "state": "failed",
        "attempts": failure["attempt"],
        "failures": failure["failures"],
        "cid": failure["cid"],
        "digest": None,
        "size_bytes": 0,
        "holders": [],
        "addresses": [],
        "error": failure["error"],
    }
