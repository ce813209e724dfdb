"""A job's log that is longer than one answer: all of it, each line once, in order."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from tasksprint.asking.cluster import Cluster
from tasksprint.coordination.rows import Row
from tasksprint.encoding import encode_json
from tasksprint.ids import JobId
from tasksprint.net.http_messages import HttpResponse
from tasksprint.net.keys import ClusterKey
from tasksprint.roles.coordinator import job_notes
from tasksprint.roles.coordinator.job_notes import JobNotes
from tasksprint.settings import Settings
from tasksprint.store.records import AppliedPoint, Commit
from tests.net.support import run
from tests.store.memory_store import MemoryDirectory, MemoryReplicaStore


def _row(number: int, job: int = 1) -> Row:
    return Row("job_log", (job, number), (f"line {number}",))


def _notes(written: int, unwritten: range) -> JobNotes:
    """Of a mirror that has so many lines of job 1, and some others on their way."""
    store = MemoryReplicaStore.open(MemoryDirectory(), 1, now_ms=0)
    rows = (*(_row(number) for number in range(written)), _row(0, 2))
    store.commit(Commit(rows=rows, applied=AppliedPoint(1, "d")))

    async def read(function: Any, *arguments: Any) -> Any:
        return function(store, *arguments)

    waiting = [_row(number) for number in unwritten]
    mirror = SimpleNamespace(unwritten_rows=lambda table, key: waiting)
    return JobNotes(cast(Any, mirror), cast(Any, SimpleNamespace(run=read)))


@pytest.mark.parametrize("written", [0, 1, 9, 10, 11, 20, 25])
def test_lines_that_follow_a_page_that_was_cut_wait_for_the_next(
    written: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_notes, "_ROWS_MAX", 10)
    expected = [f"line {number}" for number in range(written + 5)]

    async def main() -> None:
        # (Some of them are written while they are asked for, and so found twice.)
        notes = _notes(written, range(max(written - 3, 0), written + 5))
        found: list[str] = []
        while lines := await notes.log_lines(JobId(1), len(found)):
            assert lines == expected[len(found) : len(found) + len(lines)]
            found += lines
        assert found == expected

    run(main)


def test_commands_ask_for_the_rest_of_a_long_log() -> None:
    asked: list[int] = []
    total = 25

    class Paged(Cluster):
        def request(self, method: str, path: str, **options: Any) -> HttpResponse:
            first = options["query"]["first_line"]
            asked.append(first)
            lines = [f"line {number}" for number in range(first, min(first + 10, total))]
            told = {"log": lines, "log_lines": total, "failures": [], "output": ""}
            return HttpResponse(200, {}, encode_json(told))

    cluster = Paged(["h:1"], ClusterKey(bytes(32)), Settings())
    lines, _ = cluster.job_notes(JobId(1), 3, 0)
    assert lines == [f"line {number}" for number in range(3, 25)]
    assert asked == [3, 13, 23]
    assert len(cluster.job_log(JobId(1))["log"]) == 25
    # One that is behind the others has no more: that isn't waited for.
    asked.clear()
    total = 30
    assert cluster.job_notes(JobId(1), 30, 0) == ([], []) and asked == [30]
