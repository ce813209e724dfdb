"""The commands of jobs: submit, jobs, result, logs, cancel, job forget.

Each prints its result to stdout, as text or (`--json`) as one JSON value. Progress goes to
stderr.
"""

from __future__ import annotations

import argparse
import base64
import secrets
import sys
from collections.abc import Callable
from typing import Any

from tasksprint.asking.cluster import Cluster, JobOutcome, parse_params, read_job_option
from tasksprint.cli.failure_text import failure_block
from tasksprint.cli.following import follow_to_end
from tasksprint.cli.progress import counts_in_words, with_hint
from tasksprint.encoding import encode_json
from tasksprint.errors import (
    EXIT_OK,
    JobFailed,
    PeerUnreachable,
    Refused,
    RemoteProtocolError,
    UsageError,
)
from tasksprint.ids import JobId
from tasksprint.next_steps import how_to_come_back, how_to_go_on
from tasksprint.plain_text import plain_lines
from tasksprint.process.signals import interrupted_by_signals
from tasksprint.process.terminal import (
    event_line,
    print_answer,
    print_as_is,
    print_bytes,
    print_json,
    print_json_text,
    print_plain,
    table_lines,
)

__all__ = [
    "cancel",
    "end_of_job",
    "forget",
    "list_jobs",
    "logs",
    "print_outcome",
    "print_submitted",
    "result",
    "seed_of",
    "submit",
]

_SEED_END = 2**63


def submit(cluster: Cluster, options: argparse.Namespace) -> int:
    """Carry out `submit`."""
    directory, manifest = read_job_option(options.job, check_determinism=options.check_determinism)
    params = parse_params(manifest, options.param)
    seed = seed_of(options.seed, manifest.seed)
    job = cluster.submit(directory, manifest, seed=seed, params=params)
    if not options.wait:
        if options.json:
            print_json({"job": job, "state": "running"})
        else:
            print_plain(f"submitted {manifest.name!r} as job {job}")
            sys.stdout.flush()  # Else later lines stand before it in a terminal's log.
            print_plain(how_to_go_on(options, job), file=sys.stderr)
        return EXIT_OK
    if options.json:
        print_submitted(job, manifest.name, seed)
    else:
        print_plain(f"submitted {manifest.name!r} as job {job}", file=sys.stderr)
    return _wait_for_end(cluster, options, job, is_known=True)


def print_submitted(job: JobId, name: str, seed: int) -> None:
    """Print the first of the events that programs read."""
    event = {"event": "submitted", "job": job, "name": name, "seed": seed}
    print_plain(event_line(event), file=sys.stderr)


def _wait_for_end(
    cluster: Cluster, options: argparse.Namespace, job: JobId, *, is_known: bool = False
) -> int:
    """Wait for a job's end; a person who interrupts is told that it goes on."""
    try:
        with interrupted_by_signals():
            return end_of_job(
                cluster, job, as_json=options.json, with_logs=options.logs, is_known=is_known
            )
    except KeyboardInterrupt:
        print_plain(how_to_come_back(options, job), file=sys.stderr)
        raise


def seed_of(option: int | None, manifest: int | None) -> int:
    """Return the job's seed: the command line's, else the manifest's, else a random one."""
    if option is not None:
        if not 0 <= option < _SEED_END:
            raise UsageError(f"--seed {option} is not from 0 to 2**63 - 1")
        return option
    if manifest is not None:
        return manifest
    return secrets.randbits(53)


def end_of_job(
    cluster: Cluster,
    job: JobId,
    *,
    as_json: bool,
    with_logs: bool = False,
    with_hints: bool = True,
    is_known: bool = False,
    check: Callable[[], None] = lambda: None,
) -> int:
    """Wait for a job's end with progress on stderr, print its result, return the exit code.

    Args:
        with_logs: Show what nodes write to stderr, too.
        with_hints: If the job waits for something, say what can be done about it.
        is_known: A coordinator has taken it, so it isn't given up while none answers.
        check: Called every second or so; it may raise.
    """
    outcome = follow_to_end(
        cluster,
        job,
        as_json=as_json,
        with_logs=with_logs,
        with_hints=with_hints,
        is_known=is_known,
        check=check,
    )
    return print_outcome(cluster.with_warnings(outcome), as_json=as_json)


def print_outcome(outcome: JobOutcome, *, as_json: bool) -> int:
    """Print how a job ended, and return the exit code that says so.

    Raises:
        JobFailed: It failed or was cancelled.
        Refused: It runs; as JSON that is printed all the same, with its state.
    """
    for warning in outcome.warnings:
        if as_json:
            line = event_line({"event": "warning", "job": outcome.job, "text": warning})
        else:
            line = f"tasksprint: warning: job {outcome.job}: {warning}"
        print_plain(line, file=sys.stderr)
    if as_json:
        print_json_text(outcome.encode())
    elif outcome.state == "finished":
        print_json_text((outcome.values or "null").encode())
        print_plain(f"job {outcome.job} finished in {outcome.seconds:.1f} s", file=sys.stderr)
    if outcome.state == "running":  # Nothing of it stands where a program looks for the result.
        text = f"job {outcome.job} has no result yet, it is running: "
        text += counts_in_words(outcome.tasks, outcome.obstacle)
        if outcome.obstacle is not None:
            text += f"; it waits: {with_hint(outcome.obstacle)}"
        raise Refused(text, hint=f"'result {outcome.job} --wait' waits for the job's end")
    if outcome.state in ("failed", "cancelled"):
        raise JobFailed(
            f"job {outcome.job} {outcome.state}: {outcome.error}" + _beneath(outcome.failure)
        )
    return EXIT_OK


def _beneath(failure: dict[str, Any] | None) -> str:
    """Return the lines beneath the sentence about a failure."""
    return "" if failure is None else "\n" + failure_block(failure)


def result(cluster: Cluster, options: argparse.Namespace) -> int:
    """Carry out `result`."""
    job = JobId(options.job_id)
    if options.task is not None:
        return _task_result(cluster, options, job, options.task)
    if options.key is not None:
        raise UsageError("--key goes with --task")
    if options.wait:
        return _wait_for_end(cluster, options, job)
    outcome, _ = cluster.job(job)
    return print_outcome(outcome, as_json=options.json)


def _task_result(cluster: Cluster, options: argparse.Namespace, job: JobId, tid: int) -> int:
    info, keys = cluster.task_values(job, tid)
    state = info["state"]
    if state in ("failed", "killed"):
        error = info.get("error") or f"task {tid} of job {job} was {state}"
        raise JobFailed(error + _beneath(info.get("failure")))
    if not info.get("holders") and state != "done":
        state = "running" if state == "assigned" else state
        raise Refused(
            f"task {tid} of job {job} isn't done, it is {state}",
            hint=f"'result {job} --wait' waits for the job's end",
        )
    if not info.get("holders"):
        raise Refused(
            f"the values of task {tid} of job {job} are not kept any more",
            hint="a finished job keeps the tasks that its scheduler named in finish(taskids=…)",
        )
    if options.key is not None:
        if options.key not in [key for key, _ in keys]:
            found = ", ".join(repr(key) for key, _ in keys) or "nothing"
            raise UsageError(
                f"task {tid} returned no value under key {options.key!r}, but {found}"
            )
        print_bytes(cluster.task_value(info, job, tid, options.key))
        return EXIT_OK
    members: list[bytes] = []
    raw: dict[str, str] = {}
    for key, kind in keys:
        data = cluster.task_value(info, job, tid, key)
        if kind == "json":
            members.append(encode_json(key) + b":" + data)
        else:
            raw[key] = base64.b64encode(data).decode()
    head = encode_json({"job": job, "task": tid, "state": state})
    text = head[:-1] + b',"values":{' + b",".join(members) + b"}"
    if raw:
        text += b',"base64":' + encode_json(raw)
    print_json_text(text + b"}")
    return EXIT_OK


def cancel(cluster: Cluster, options: argparse.Namespace) -> int:
    """Carry out `cancel`."""
    job = JobId(options.job_id)
    cluster.order(f"/v1/jobs/{job}/cancel", reason="cancelled by its user")
    # It may have ended by itself before.
    outcome, _ = cluster.job(job)
    state = outcome.state
    text = f"cancelled job {job}" if state == "cancelled" else f"job {job} had {state} before"
    print_answer({"job": job, "state": state}, [text], as_json=options.json)
    return EXIT_OK


def forget(cluster: Cluster, options: argparse.Namespace) -> int:
    """Carry out `job forget`."""
    job = JobId(options.job_id)
    cluster.order(f"/v1/jobs/{job}/forget")
    told = {"job": job, "state": "forgotten"}
    print_answer(told, [f"forgot job {job}"], as_json=options.json)
    return EXIT_OK


def list_jobs(cluster: Cluster, options: argparse.Namespace) -> int:
    """Carry out `jobs`."""
    jobs = cluster.request("GET", "/v1/jobs").json()
    rows = (
        [
            str(job["job"]),
            job["name"],
            job["state"],
            f"{job['seconds']:.1f} s",
            counts_in_words(job["tasks"], job["obstacle"]),
        ]
        for job in jobs
    )
    heads = ["JOB", "NAME", "STATE", "TIME", "TASKS"]
    print_answer(jobs, table_lines(heads, rows), as_json=options.json)
    return EXIT_OK


def logs(cluster: Cluster, options: argparse.Namespace) -> int:
    """Carry out `logs`."""
    job = options.job_id
    parts: list[dict[str, Any]] = []
    if options.task is not None:
        _require_task(cluster, JobId(job), options.task)
        query = {"tid": options.task}
        answer = cluster.request("GET", f"/v1/jobs/{job}/log", query=query).json()
    else:
        answer = cluster.job_log(job)
        parts.extend({"source": "log", "text": line} for line in answer["log"])
        if answer["output"]:
            source = f"scheduler on replica {answer['replica']}"
            parts.append({"source": source, "text": answer["output"]})
    suffix = "" if options.task is None else f"/{options.task}"
    for client in cluster.request("GET", "/v1/clients").json():
        if client["state"] != "alive" or client["address"] is None:
            continue
        try:
            found = cluster.direct(client["address"], "GET", f"/v1/logs/{job}{suffix}").json()
        except (PeerUnreachable, Refused, RemoteProtocolError) as error:
            print_plain(f"tasksprint: no logs of client {client['cid']}: {error}", file=sys.stderr)
            continue
        for entry in found:
            source = f"task {entry['tid']} attempt {entry['attempt']} on client {client['cid']}"
            parts.append({"source": source, "text": entry["text"]})
    _add_failures(parts, answer["failures"])
    if options.json:
        print_json(parts)
        return EXIT_OK
    for part in parts:
        text = part["text"] if options.raw else plain_lines(part["text"])
        for line in text.removesuffix("\n").split("\n"):
            print_as_is(f"{part['source']}: {line}")
    return EXIT_OK


def _require_task(cluster: Cluster, job: JobId, tid: int) -> None:
    """Refuse a task that never was. If an ended job forgot a task, output of it may be left."""
    outcome, _ = cluster.job(job)
    started = sum(outcome.tasks.values())
    if not 0 <= tid < started:
        raise Refused(f"job {job} has no task {tid}: it started {started}, numbered from 0")


def _add_failures(parts: list[dict[str, Any]], failures: list[dict[str, Any]]) -> None:
    """Put each failed attempt after its output."""
    behind: dict[str, list[dict[str, Any]]] = {}
    for failure in failures:
        source = f"task {failure['tid']} attempt {failure['attempt']} on client {failure['cid']}"
        text = "it failed:\n" + failure_block(failure)
        behind.setdefault(source, []).append({"source": source, "text": text, "failure": failure})
    listed, parts[:] = list(parts), []
    for index, part in enumerate(listed):
        parts.append(part)
        if [other["source"] for other in listed[index + 1 : index + 2]] != [part["source"]]:
            parts += behind.pop(part["source"], [])
    parts += [part for group in behind.values() for part in group]
