"""The commands for people that ask a running cluster: submit, status, result, and so on.

Each prints to stdout what it was asked for, as text or (`--json`) as one JSON value;
progress goes to stderr.
"""

from __future__ import annotations

import base64
import os
import secrets
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tasksprint.asking.cluster import (
    Cluster,
    JobOutcome,
    parse_params,
    read_job_option,
    status_of_coordinator,
)
from tasksprint.asking.leader import parse_addresses
from tasksprint.cli.failure_text import failure_block
from tasksprint.cli.following import follow_to_end
from tasksprint.cli.job_status import print_job_status
from tasksprint.cli.member_commands import run_member_command
from tasksprint.cli.progress import counts_in_words, with_hint
from tasksprint.encoding import encode_json
from tasksprint.errors import (
    EXIT_OK,
    JobFailed,
    PeerUnreachable,
    Refused,
    RemoteProtocolError,
    TaskSprintError,
    UnprovenAnswer,
    UsageError,
)
from tasksprint.ids import JobId
from tasksprint.net.keys import open_key
from tasksprint.net.tokens import Scope, make_token
from tasksprint.next_steps import how_to_come_back, how_to_go_on
from tasksprint.plain_text import plain_lines
from tasksprint.process.directories import state_directory
from tasksprint.process.environment import settings_from_environment
from tasksprint.process.signals import interrupted_by_signals
from tasksprint.process.terminal import (
    event_line,
    print_as_is,
    print_bytes,
    print_json,
    print_json_text,
    print_plain,
    print_table,
)

if TYPE_CHECKING:
    import argparse

__all__ = [
    "counted",
    "end_of_job",
    "print_outcome",
    "print_submitted",
    "run_command",
    "seed_of",
]

_ELECTIONS_SHOWN = 3
_SEED_END = 2**63
# How long `stop` waits for clients to leave before it stops the coordinators.
_LEAVE_S = 3.0
_GIVE_UP_MS = 2_000


def run_command(options: argparse.Namespace) -> int:
    """Carry out the command that `options` name."""
    settings = settings_from_environment()
    key = open_key(options.key_file, state_dir=state_directory(), may_create=False)
    if options.command == "token":
        if options.minutes < 1:
            raise UsageError(f"--minutes {options.minutes} is not at least 1")
        print_plain(make_token(key, Scope(options.scope), options.minutes * 60))
        return EXIT_OK
    addresses = parse_addresses(options.coordinators)
    cluster = Cluster(addresses, key, settings, name=options.cluster)
    if options.command == "backup":
        from tasksprint.rescue import backup

        return backup.run_backup(cluster, options, settings)
    handlers = {
        "submit": _submit,
        "status": _status,
        "jobs": _jobs,
        "clients": _clients,
        "result": _result,
        "logs": _logs,
        "cancel": _cancel,
        "member": run_member_command,
        "job": _forget,
        "stop": _stop,
    }
    return handlers[options.command](cluster, options)


# --- jobs ---


def _submit(cluster: Cluster, options: argparse.Namespace) -> int:
    directory, manifest = read_job_option(options.job, check_determinism=options.check_determinism)
    params = parse_params(manifest, options.param)
    seed = seed_of(options.seed, manifest.seed)
    job = cluster.submit(directory, manifest, seed=seed, params=params)
    if not options.wait:
        if options.json:
            print_json({"job": job, "state": "running"})
        else:
            print_plain(f"submitted {manifest.name!r} as job {job}")
            sys.stdout.flush()  # Else what follows stands before it in a terminal's log.
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
    """Wait for a job's end; whoever is interrupted is told that it goes on."""
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
        with_hints: Say what can be done about what the job waits for.
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
    """Return what stands beneath the sentence that tells a failure."""
    return "" if failure is None else "\n" + failure_block(failure)


def _result(cluster: Cluster, options: argparse.Namespace) -> int:
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


def counted(number: int, name: str, plural: str = "") -> str:
    """Return "1 client" or "2 clients"."""
    return f"{number} {name if number == 1 else plural or name + 's'}"


def _cancel(cluster: Cluster, options: argparse.Namespace) -> int:
    body = encode_json(
        {"sender": os.urandom(8).hex(), "request": 1, "reason": "cancelled by its user"}
    )
    reply = cluster.request("POST", f"/v1/jobs/{options.job_id}/cancel", body=body).json()
    if "error" in reply:
        raise Refused(reply["error"])
    # It may have ended by itself before.
    outcome, _ = cluster.job(JobId(options.job_id))
    if options.json:
        print_json({"job": options.job_id, "state": outcome.state})
    elif outcome.state == "cancelled":
        print_plain(f"cancelled job {options.job_id}")
    else:
        print_plain(f"job {options.job_id} had {outcome.state} before")
    return EXIT_OK


def _forget(cluster: Cluster, options: argparse.Namespace) -> int:
    body = encode_json({"sender": os.urandom(8).hex(), "request": 1})
    reply = cluster.request("POST", f"/v1/jobs/{options.job_id}/forget", body=body).json()
    if "error" in reply:
        raise Refused(reply["error"])
    if options.json:
        print_json({"job": options.job_id, "state": "forgotten"})
    else:
        print_plain(f"forgot job {options.job_id}")
    return EXIT_OK


def _jobs(cluster: Cluster, options: argparse.Namespace) -> int:
    jobs = cluster.request("GET", "/v1/jobs").json()
    if options.json:
        print_json(jobs)
        return EXIT_OK
    rows = [
        [
            str(job["job"]),
            job["name"],
            job["state"],
            f"{job['seconds']:.1f} s",
            counts_in_words(job["tasks"], job["obstacle"]),
        ]
        for job in jobs
    ]
    print_table(["JOB", "NAME", "STATE", "TIME", "TASKS"], rows)
    return EXIT_OK


def _clients(cluster: Cluster, options: argparse.Namespace) -> int:
    clients = cluster.request("GET", "/v1/clients").json()
    if options.json:
        print_json(clients)
        return EXIT_OK
    rows = [
        [
            str(client["cid"]),
            client["hostname"],
            client["address"] or "-",
            client["state"],
            str(client["slots"]),
            str(client["assigned"]),
            ", ".join(
                name if count == 1 else f"{name} x{count}"
                for name, count in client["attached"].items()
            )
            or "-",
        ]
        for client in clients
    ]
    print_table(["CLIENT", "HOST", "ADDRESS", "STATE", "NODES", "ASSIGNED", "ATTACHED"], rows)
    for client in clients:
        if client["complaint"] is not None:
            print_plain(f"client {client['cid']} disregarded an answer: {client['complaint']}")
    return EXIT_OK


def _logs(cluster: Cluster, options: argparse.Namespace) -> int:
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
    """Refuse a task that never was; of one that an ended job has forgotten output may be left."""
    outcome, _ = cluster.job(job)
    started = sum(outcome.tasks.values())
    if not 0 <= tid < started:
        raise Refused(f"job {job} has no task {tid}: it started {started}, numbered from 0")


def _add_failures(parts: list[dict[str, Any]], failures: list[dict[str, Any]]) -> None:
    """Put each failed attempt behind what it printed."""
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


# --- the cluster ---


def _status(cluster: Cluster, options: argparse.Namespace) -> int:
    if options.job_id is not None:
        return print_job_status(cluster, JobId(options.job_id), as_json=options.json)
    members = _members(cluster, parse_addresses(options.coordinators))
    if not options.json:  # First of all: what follows needs a majority of them.
        _print_members(members)
    clients = cluster.request("GET", "/v1/clients", give_up_ms=_GIVE_UP_MS).json()
    jobs = cluster.request("GET", "/v1/jobs", give_up_ms=_GIVE_UP_MS).json()
    if options.json:
        print_json({"coordinators": members, "clients": clients, "jobs": jobs})
        return EXIT_OK
    alive = [client for client in clients if client["state"] == "alive"]
    nodes = sum(client["slots"] for client in alive)
    known = counted(len(clients), "client")
    print_plain(f"{len(alive)} of {known} alive, with {counted(nodes, 'node')}")
    for member in members.values():
        for job, status in member.get("schedulers", {}).items():
            print_plain(f"job {job}, scheduler on replica {member['replica']}: {status['text']}")
    running = [job for job in jobs if job["state"] == "running"]
    for job in running:
        counts = counts_in_words(job["tasks"], job["obstacle"])
        print_plain(f"job {job['job']} {job['name']!r}: {counts}")
        if job["obstacle"]:
            print_plain(f"job {job['job']} waits: {with_hint(job['obstacle'])}")
        if job["long_run"]:
            print_plain(f"job {job['job']}: {with_hint(job['long_run'])}")
        for warning in job["warnings"]:
            print_plain(f"job {job['job']} warning: {warning}")
    print_plain(f"{len(running)} of {counted(len(jobs), 'job')} running")
    return EXIT_OK


def _print_members(members: dict[str, dict[str, Any]]) -> None:
    heads = ["REPLICA", "ADDRESS", "ROLE", "BALLOT", "CHOSEN", "APPLIED", "LAG"]
    heads += ["ENTRIES", "FILES", "WRITES"]
    here = [member for member in members.values() if "error" not in member]
    chosen = max([member["consensus"]["chosen_end"] - 1 for member in here], default=0)
    rows = []
    for name, member in sorted(members.items()):
        if "error" in member:
            rows.append([name, "-", "unreachable", *["-"] * (len(heads) - 4), member["error"]])
        else:
            rows.append([name, *_member_cells(member, chosen)])
    print_table(heads, rows)
    for name, member in sorted(members.items()):
        space = member.get("free_space") or {"level": "plenty"}
        if space["level"] != "plenty":
            free = f"{space['free_bytes'] / 1e6:.0f} MB"
            print_plain(f"replica {name}: {space['level']} disk space, {free} are free")
    elections = [
        (election["wall_ms"], election)
        for member in here
        for election in member["elections"]
        if election["cause"] is not None  # Who was elected says why.
    ]
    for wall_ms, election in sorted(elections, key=lambda pair: pair[0])[-_ELECTIONS_SHOWN:]:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(wall_ms / 1000))
        ballot = "{}.{}".format(*election["ballot"])
        replica, cause = election["leader"], election["cause"]
        print_plain(f"{when} replica {replica} was elected with ballot {ballot}: it {cause}")
    sys.stdout.flush()


def _member_cells(member: dict[str, Any], chosen: int) -> list[str]:
    """Return a replica's row of `status`; `chosen`: the last slot that anyone knows chosen."""
    consensus, files, writes = member["consensus"], member["files"], member["writes"]
    applied = member["applied_slot"]
    kept = consensus["chosen_end"] + consensus["open_slots"] - consensus["log_start"]
    times = "-"
    if writes["p50_s"] is not None:
        times = f"{1000 * writes['p50_s']:.2f} ms, p99 {1000 * writes['p99_s']:.2f} ms"
    return [
        member["address"],
        consensus["role"],
        "{}.{}".format(*consensus["ballot"]),
        str(consensus["chosen_end"] - 1),
        str(applied),
        str(max(chosen - applied, 0)),
        str(kept),
        f"{(files['database_bytes'] + files['wal_bytes']) / 1e6:.1f} MB",
        times,
    ]


def _members(cluster: Cluster, known: list[str]) -> dict[str, dict[str, Any]]:
    """Return the status of every coordinator, by replica id."""
    found: dict[str, dict[str, Any]] = {}
    failure: TaskSprintError | None = None
    for address in known:
        try:
            addresses = status_of_coordinator(cluster, address)["members"]
            break
        except (PeerUnreachable, Refused, RemoteProtocolError) as error:
            failure = error
    else:
        if isinstance(failure, (Refused, UnprovenAnswer)):
            raise failure
        raise PeerUnreachable(
            f"no coordinator answers at {', '.join(known)}: {failure}",
            hint="start one with 'tasksprint coordinator', or name others with --coordinators",
        )
    for replica, address in addresses.items():
        try:
            found[replica] = status_of_coordinator(cluster, address)
        except (PeerUnreachable, Refused, RemoteProtocolError) as error:
            found[replica] = {"replica": int(replica), "address": address, "error": str(error)}
    return found


def _stop(cluster: Cluster, options: argparse.Namespace) -> int:
    members = _members(cluster, parse_addresses(options.coordinators))
    coordinators = [member["address"] for member in members.values() if "error" not in member]
    found = _living_clients(cluster)
    clients = found or []
    stopped = _stop_each(cluster, clients)
    # They leave in good order while somebody is there to hear it.
    deadline_s = time.monotonic() + _LEAVE_S
    while clients and _living_clients(cluster) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    stopped += _stop_each(cluster, coordinators)
    total = len(clients) + len(coordinators)
    print_plain(f"stopped {stopped} of {counted(total, 'process', 'processes')}")
    if found is None:
        raise PeerUnreachable(
            "no coordinator leads, so the clients aren't known; end those that still run by hand"
        )
    return EXIT_OK if stopped == total else PeerUnreachable.exit_code


def _living_clients(cluster: Cluster) -> list[str] | None:
    """Return the addresses of the clients that can be asked to stop; None: nobody knows."""
    try:
        clients = cluster.request("GET", "/v1/clients", give_up_ms=_GIVE_UP_MS).json()
    except PeerUnreachable:
        return None  # No quorum: what can be reached is stopped all the same.
    return [one["address"] for one in clients if one["state"] == "alive" and one["address"]]


def _stop_each(cluster: Cluster, addresses: list[str]) -> int:
    stopped = 0
    for address in addresses:
        try:
            cluster.direct(address, "POST", "/v1/stop", repeatable=False)
            stopped += 1
        except (PeerUnreachable, Refused, RemoteProtocolError) as error:
            print_plain(f"tasksprint: {address} didn't stop: {error}", file=sys.stderr)
    return stopped
