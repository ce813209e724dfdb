"""`status JOB`: how one job stands, what it waits for, and what failed last."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tasksprint.asking.cluster import Cluster
from tasksprint.cli.failure_text import failure_line
from tasksprint.cli.progress import counted, counts_in_words, with_hint
from tasksprint.errors import EXIT_OK
from tasksprint.ids import JobId
from tasksprint.process.terminal import print_answer

__all__ = ["print_job_status"]

_FAILURES_SHOWN = 5
_LINES_SHOWN = 5


def print_job_status(cluster: Cluster, job: JobId, *, as_json: bool) -> int:
    """Print how a job stands."""
    summary: dict[str, Any] = cluster.request("GET", f"/v1/jobs/{job}").json()
    first_line = max(summary["log_lines"] - _LINES_SHOWN, 0)
    first_failure = max(summary["failures"] - _FAILURES_SHOWN, 0)
    lines, failures = cluster.job_notes(job, first_line, first_failure)
    told = {**summary, "last_log": lines, "last_failures": failures}
    print_answer(told, _lines_of_job(job, summary, lines, failures), as_json=as_json)
    return EXIT_OK


def _lines_of_job(
    job: JobId, summary: dict[str, Any], lines: list[str], failures: list[Any]
) -> Iterator[str]:
    yield (
        f"job {job} {summary['name']!r}: {summary['state']}, {summary['seconds']:.1f} s, "
        f"{counts_in_words(summary['tasks'], summary['obstacle'])}"
    )
    if summary["obstacle"] is not None:
        yield f"job {job} waits: {with_hint(summary['obstacle'])}"
    if summary["long_run"] is not None:
        yield with_hint(summary["long_run"])
    if summary["error"] is not None:
        yield f"error: {summary['error']}"
    for warning in summary["warnings"]:
        yield f"warning: {warning}"
    for replica, error in summary["schedulers_out"].items():
        yield f"its scheduler on replica {replica} is gone: {error}"
    for line in lines:
        yield f"log: {line}"
    if summary["failures"]:
        yield _failed_attempts(summary["failures"], len(failures))
    for failure in failures:
        yield failure_line(failure)


def _failed_attempts(number: int, shown: int) -> str:
    """Return the line above those that are shown."""
    attempts = counted(number, "attempt")
    if shown < number:
        return f"{attempts} at its tasks failed so far, the last {shown} of them:"
    return f"{attempts} at its tasks failed so far:"
