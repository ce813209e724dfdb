"""The rows of a job, and the job from its rows.

A job's row changes with every entry that concerns it. So its constant parts (seed,
parameters, program, manifest) stand in a fact of their own, and each timer in another.
"""

from __future__ import annotations

from typing import Any

from tasksprint.coordination.jobs import Job
from tasksprint.coordination.rows import Row
from tasksprint.coordination.task_states import STATES
from tasksprint.encoding import decode_json, encode_json
from tasksprint.ids import JobId

__all__ = [
    "definition_row",
    "job_from_rows",
    "job_row",
    "program_of",
    "timer_name",
    "timer_row",
]


def definition_row(job: Job) -> Row:
    """Return the row of the job's constant parts."""
    body = [job.seed, job.params, job.program, job.manifest, job.submitted_ms,
            job.submitted_wall_ms]  # fmt: skip
    if job.rules > 1:
        body.append(job.rules)
    return Row("facts", (f"job {job.job}",), (encode_json(body).decode(),))


def program_of(row: Row) -> str | None:
    """Return the digest of a job's archive, from its `definition_row`; None: another row."""
    name = row.key[0]
    if row.table != "facts" or row.columns is None or not str(name).startswith("job "):
        return None
    _, _, program, *_ = decode_json(str(row.columns[0]).encode())
    return str(program)


def job_row(job: Job) -> Row:
    """Return the job's row as it is now."""
    body: dict[str, Any] = {
        "tasks": dict(zip(STATES, job.counts, strict=True)),
        "next_tid": job.next_tid,
        "events": job.event_count,
        "next_event": job.next_event,
        "next_part": job.next_part,
        "values": job.values,
        "error": job.error,
        "keep": job.keep,
        "finishing": job.finishing,
        "ended_ms": job.ended_ms,
        "ended_wall_ms": job.ended_wall_ms,
        "next_timer": job.next_timer,
        "log_lines": job.log_lines,
        "failures": job.failure_count,
        "out": [[replica, kind, error] for replica, (kind, error) in job.out.items()],
    }
    if job.loss_lines:
        body["loss_lines"] = job.loss_lines
    if job.runtimes:
        body["runtimes"] = job.runtimes
    if job.warnings:
        body["warnings"] = job.warnings
    if job.handles is not None:
        body["handles"] = job.handles
    if job.idle_end_ms is not None:
        body["idle_end_ms"] = job.idle_end_ms
    return Row("jobs", (job.job,), (job.name, job.state, encode_json(body).decode()))


def timer_row(job: Job, due_ms: int, number: int, timer: int) -> Row:
    """Return the row of one timer of a running job."""
    return Row("facts", (timer_name(job, number),), (encode_json((due_ms, timer)).decode(),))


def timer_name(job: Job, number: int) -> str:
    """Return the name of the fact of a job's timer."""
    return f"timer {job.job} {number}"


def job_from_rows(
    job_id: JobId,
    name: str,
    state: str,
    body: dict[str, Any],
    definition: list[Any],
    default_retries: int,
) -> Job:
    """Return a job from its rows, still without tasks, events, answers, estimates and timers."""
    seed, params, program, manifest, submitted_ms, submitted_wall_ms, *later = definition
    rules = later[0] if later else 1
    job = Job(job_id, name, seed, params, program, manifest, default_retries, rules)
    job.state = state
    job.submitted_ms = submitted_ms
    job.submitted_wall_ms = submitted_wall_ms
    job.counts = list(body["tasks"].values())
    job.next_tid = body["next_tid"]
    job.event_count = body["events"]
    job.next_event = body["next_event"]
    job.next_part = body["next_part"]
    job.values = body["values"]
    job.error = body["error"]
    job.keep = tuple(body["keep"])
    finishing = body["finishing"]
    job.finishing = (tuple(finishing[0]), finishing[1]) if finishing is not None else None
    job.ended_ms = body["ended_ms"]
    job.ended_wall_ms = body["ended_wall_ms"]
    job.next_timer = body["next_timer"]
    job.log_lines = body["log_lines"]
    job.loss_lines = body.get("loss_lines", 0)
    job.failure_count = body["failures"]
    job.out = {replica: (kind, error) for replica, kind, error in body["out"]}
    job.runtimes = {kind: (text, who) for kind, (text, who) in body.get("runtimes", {}).items()}
    job.warnings = body.get("warnings", {})
    job.handles = tuple(body["handles"]) if "handles" in body else None
    job.idle_end_ms = body.get("idle_end_ms")
    if not job.is_running:
        job.let_go()
    return job
