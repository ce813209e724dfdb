"""A coordinator with a long past: restart, memory, and the catch-up of an empty replica.

The past is made in this process and without a network: commands are applied to the state
machine and its rows are written, as in a coordinator. Half of the finished tasks were released
by a job that still runs. So its history of events is long, and a scheduler replays it. The
other half are in jobs that have ended. The live tasks are ready and wait for a client. Then
real coordinators are started on the files:

- restart: the time from the start of the process to the first acknowledged command (the
  cancellation of a job that doesn't exist: chosen, durable and applied like any other). The
  job's scheduler replays meanwhile. Also the memory at that moment, and the most memory until
  the end of the replay.
- catch_up: two of three members have that past, the third has an empty disk. The time from the
  start of the third to the same digest as the others.

They run from compiled bytecode, like any program that was started before.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from bench.cluster import free_ports, own_bytecode
from tasksprint.asking.cluster import Cluster
from tasksprint.consensus import Founding, Member, Persist, encode_founding
from tasksprint.coordination.commands import (
    Answer,
    AnswerPart,
    Command,
    Completion,
    JoinClient,
    LeaveClient,
    Report,
    SubmitJob,
    Tick,
    encode_command,
)
from tasksprint.coordination.rows import Row
from tasksprint.coordination.schedule import Schedule
from tasksprint.encoding import decode_json, encode_json
from tasksprint.errors import PeerUnreachable, Refused, RemoteProtocolError
from tasksprint.ids import ClientId, Incarnation, JobId, ReplicaId, Slot, TaskId
from tasksprint.installation import own_command
from tasksprint.net.keys import create_key
from tasksprint.process.job_directory import pack, read_job
from tasksprint.process.program import die_with_parent
from tasksprint.scheduler_commands import FinishJob, ReleaseTasks, SchedulerCommand
from tasksprint.settings import RULES, Settings
from tasksprint.store.database import Database
from tasksprint.store.records import AppliedPoint, Commit
from tasksprint.store.replica_store import ReplicaStore
from tasksprint.store.vital import DATABASE_FILE, REPLICA_KIND, read_header, write_header
from tasksprint.task_spec import TaskSpec

__all__ = ["measure"]

_JOB = Path(__file__).parent / "jobs" / "history"
_CLUSTER = "bench"
_SEED = 1
_PART = 1_000  # commands of an answer: the SDK cuts there
_BATCH = 1_000  # completions of a report
_ENDED_JOB_TASKS = 100_000
_COMMIT_ROWS = 20_000
_DIGEST = "0123456789abcdef" * 4
_GIVE_UP_S = 300.0
_POLL_S = 0.01
_MIB = 1024 * 1024


def measure(finished: int, live: int, *, catch_up: bool = True) -> dict[str, object]:
    """Return the figures of one run."""
    folder = Path(tempfile.mkdtemp(prefix="tasksprint-bench-"))
    try:
        began_s = time.perf_counter()
        past = folder / "past"
        _make_past(past, finished, live)
        figures: dict[str, object] = {
            "finished_tasks": finished,
            "live_tasks": live,
            "load_before": round(os.getloadavg()[0], 2),
            "made_in_s": round(time.perf_counter() - began_s, 1),
            "mirror_mib": round(_bytes_of(past) / _MIB, 1),
        }
        with own_bytecode():
            _start_once(folder)
            figures["restart"] = _restart(folder, past, live)
            if catch_up:
                figures["catch_up"] = _catch_up(folder, past)
        return figures
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# --- the past ---


class _Past:
    """A state machine and its mirror, driven as fast as they go."""

    def __init__(self, store: ReplicaStore) -> None:
        self._store = store
        self._rows: list[Row] = []
        self._slot = 0
        self._requests = 0
        self.schedule = Schedule(cluster=_CLUSTER, members=(ReplicaId(1),), rules=RULES)
        self._client = (ClientId(1), Incarnation("bench"))
        self.apply(Tick(1, 1_700_000_000_000))
        self.apply(JoinClient("bench", self._client[1], None, "bench", 1_000))

    def apply(self, *commands: Command) -> None:
        self._slot += 1
        encoded = tuple([encode_command(command) for command in commands])
        self._rows += self.schedule.apply(Slot(self._slot), encoded).rows
        if len(self._rows) >= _COMMIT_ROWS:
            self.commit()

    def commit(self) -> None:
        rows, self._rows = self._rows, []
        point = AppliedPoint(self.schedule.applied_slot, self.schedule.digest)
        self._store.commit(Commit(rows=tuple(rows), applied=point, truncate_below=point.slot + 1))
        self._store.checkpoint_if_due()

    def submit(self, program: str, params: dict[str, int]) -> JobId:
        manifest = decode_json(read_job(_JOB).encode().encode())
        node = encode_json({"node": manifest["node"]}).decode()
        text = encode_json({**manifest, "node": node}).decode()
        job = self.schedule._state.next_job
        self.apply(
            SubmitJob("bench", job, "history", _SEED, encode_json(params).decode(), program, text)
        )
        return job

    def answer(self, job: JobId, event: int, commands: list[SchedulerCommand]) -> None:
        """Give the whole answer to an event, in parts."""
        cut = [commands[at : at + _PART] for at in range(0, len(commands), _PART)] or [[]]
        tid = self.schedule._state.jobs[job].next_tid
        for number, part in enumerate(cut):
            last = number == len(cut) - 1
            self.apply(Answer(job, (AnswerPart(event, number, last, tid, tuple(part)),)))
            tid = TaskId(tid + sum(isinstance(one, TaskSpec) for one in part))

    def run_some(self, job: JobId, count: int) -> list[TaskId]:
        """Complete up to `count` tasks that are assigned; return them in order."""
        cid, incarnation = self._client
        view = self.schedule.view(cid, incarnation, Slot(0))
        assert view is not None
        tasks = view.run[: min(count, _BATCH)]
        assert tasks, "tasks wait, and the client has none"
        self._requests += 1
        self.apply(
            Report(
                cid,
                incarnation,
                self._requests,
                self._requests,
                tuple(
                    [
                        Completion(job, task.tid, task.attempt, _DIGEST, 10, None, 1_000)
                        for task in tasks
                    ]
                ),
            )
        )
        return [task.tid for task in tasks]

    def leave(self) -> None:
        self.apply(LeaveClient(*self._client))
        self.commit()


def _start(first: int, end: int) -> list[SchedulerCommand]:
    return [TaskSpec("work", f"[{number}]") for number in range(first, end)]


def _make_past(directory: Path, finished: int, live: int) -> None:
    store = ReplicaStore.open(directory, 1, now_ms=0, incarnation="inc1")
    archive, program = pack(_JOB, archive_bytes_max=_MIB)
    store.put_blob(program, archive)
    store.commit(Commit((Persist(founding=_founding(["127.0.0.1:1"])),), cluster=_CLUSTER))
    past = _Past(store)
    released = finished // 2
    ended = finished - released
    while ended:
        count = min(ended, _ENDED_JOB_TASKS)
        _run_ended_job(past, program, count)
        ended -= count
    _run_released(past, program, released, live)
    past.leave()
    while store.idle_work_is_due:
        store.do_idle_work()
    store.close()


def _run_ended_job(past: _Past, program: str, count: int) -> None:
    job = past.submit(program, {"released": count, "live": 0, "window": count})
    past.answer(job, 0, _start(0, count))
    past.apply(Answer(job, (), ((1, 2),)))
    done = 0
    while done < count:
        tids = past.run_some(job, count - done)
        past.apply(Answer(job, (), ((2 + done, 2 + done + len(tids)),)))
        done += len(tids)
    event = past.schedule._state.jobs[job].next_event
    assert event == 2 + count
    # An event to answer: the time of a timer would do as well.
    past.apply(JoinClient("other", Incarnation(f"i{job}"), None, "bench", 0))
    past.answer(job, event, [FinishJob((), "1")])
    assert not past.schedule.is_running(job)


def _run_released(past: _Past, program: str, released: int, live: int) -> None:
    """Do as the scheduler of bench/jobs/history does."""
    window = min(1_000, released)
    job = past.submit(program, {"released": released, "live": live, "window": window})
    past.answer(job, 0, _start(0, window))
    state = past.schedule._state.jobs[job]
    past.apply(Answer(job, (), ((1, state.event_count),)))
    started, done = window, 0
    while done < released:
        event, tid = state.next_event, state.next_tid
        parts: list[AnswerPart] = []
        final: list[SchedulerCommand] = []
        for finished in past.run_some(job, released - done):
            commands: list[SchedulerCommand] = [ReleaseTasks((finished,))]
            done += 1
            if started < released:
                commands += _start(started, started + 1)
                started += 1
            elif done == released:
                final = [*commands, *_start(started, started + live)]
                break
            parts.append(AnswerPart(event, 0, True, tid, tuple(commands)))
            event, tid = event + 1, TaskId(tid + len(commands) - 1)
        if parts:
            past.apply(Answer(job, tuple(parts)))
        if final:
            past.answer(job, event, final)
    assert sum(state.counts) == released + live and len(state.tasks) == live


# --- members ---


def _founding(addresses: list[str]) -> bytes:
    return encode_founding(
        Founding(
            _CLUSTER,
            tuple(
                Member(ReplicaId(number), Incarnation(f"inc{number}"), address)
                for number, address in enumerate(addresses, start=1)
            ),
        )
    )


def _own(directory: Path, replica: int, founding: bytes) -> None:
    """Make a copied file another member's: they differ only in the header."""
    database = Database(directory / DATABASE_FILE, REPLICA_KIND, Settings())
    header = read_header(database)
    incarnation = f"inc{replica}"
    with database.transaction() as cursor:
        write_header(
            cursor,
            replace(header, replica=replica, incarnation=incarnation, founding=founding),
        )
    database.close()


def _free_addresses(count: int) -> list[str]:
    return [f"127.0.0.1:{port}" for port in free_ports(count)]


class _Members:
    """Real coordinators on prepared files; a context manager."""

    def __init__(self, folder: Path, addresses: list[str]) -> None:
        self._folder = folder
        self._key_file = folder / "key"
        self.addresses = addresses
        self.cluster = Cluster(addresses, create_key(self._key_file), Settings())
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> _Members:
        return self

    def __exit__(self, *exception: object) -> None:
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError):  # It may have ended by itself.
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def start(self, number: int, directory: Path) -> None:
        peers = ",".join(
            f"{index}={address}" for index, address in enumerate(self.addresses, start=1)
        )
        with open(self._folder / f"log-{number}", "ab") as log:
            self._processes[number] = subprocess.Popen(
                [
                    *own_command(), "coordinator", "--id", str(number),
                    "--listen", self.addresses[number - 1], "--peers", peers,
                    "--data-dir", str(directory), "--key-file", str(self._key_file),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=die_with_parent(),
            )  # fmt: skip

    def status(self, number: int) -> dict[str, Any]:
        try:
            found = self.cluster.direct(self.addresses[number - 1], "GET", "/v1/status").json()
        except (PeerUnreachable, Refused, RemoteProtocolError):
            return {}
        assert isinstance(found, dict)
        return found

    def memory_mib(self, number: int) -> float:
        return float(psutil.Process(self._processes[number].pid).memory_info().rss) / _MIB

    def command(self) -> bool:
        """Send one command to the first member; return whether it was acknowledged."""
        body = encode_json({"sender": os.urandom(8).hex(), "request": 1, "reason": "bench"})
        try:
            address = self.addresses[0]
            response = self.cluster.direct(address, "POST", "/v1/jobs/999999999/cancel", body=body)
        except Refused as error:
            return "there is no job" in str(error)
        except (PeerUnreachable, RemoteProtocolError):
            return False
        return b"there is no job" in response.body

    def check(self) -> None:
        for number, process in self._processes.items():
            if process.poll() is not None:
                text = (self._folder / f"log-{number}").read_text(errors="replace")[-2_000:]
                raise SystemExit(f"coordinator {number} ended: {text}")


def _waiting(members: _Members, what: str) -> Iterator[None]:
    """Yield now and then, and give up at some time."""
    give_up_s = time.monotonic() + _GIVE_UP_S
    while True:
        yield
        members.check()
        if time.monotonic() > give_up_s:
            raise SystemExit(f"not so after {_GIVE_UP_S} s: {what}")
        time.sleep(_POLL_S)


# --- figures ---


def _bytes_of(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.glob("replica.db*"))


def _start_once(folder: Path) -> None:
    """Start a coordinator without a past, so that its bytecode is there."""
    with _Members(folder, _free_addresses(1)) as members:
        members.start(1, folder / "nothing")
        for _ in _waiting(members, "a coordinator without a past has started"):
            if members.command():
                break


def _restart(folder: Path, past: Path, live: int) -> dict[str, object]:
    directory = folder / "one"
    shutil.copytree(past, directory)
    addresses = _free_addresses(1)
    _own(directory, 1, _founding(addresses))
    with _Members(folder, addresses) as members:
        began_s = time.perf_counter()
        members.start(1, directory)
        for _ in _waiting(members, "a command is acknowledged"):
            if members.command():
                break
        first_s = time.perf_counter() - began_s
        memory_mib = members.memory_mib(1)
        _check_tasks(members, live)
        replaying = _replay_of(members.status(1))
        highest_mib = memory_mib
        for _ in _waiting(members, "the scheduler has replayed"):
            time.sleep(0.2)  # Real time: each look takes some from who is measured.
            highest_mib = max(highest_mib, members.memory_mib(1))
            state = _replay_of(members.status(1))
            if state.startswith("live"):
                break
            if state.startswith(("out", "restarting")):
                raise SystemExit(f"the scheduler doesn't replay: {state}")
        return {
            "first_acknowledged_s": round(first_s, 3),
            "memory_mib": round(memory_mib, 1),
            "memory_while_replaying_mib": round(highest_mib, 1),
            "scheduler_then": replaying,
            "replayed_s": round(time.perf_counter() - began_s, 1),
        }


def _check_tasks(members: _Members, live: int) -> None:
    jobs = members.cluster.request("GET", "/v1/jobs").json()
    ready = [job["tasks"]["ready"] for job in jobs if job["state"] == "running"]
    if ready != [live]:
        raise SystemExit(f"running jobs have {ready} ready tasks, expected {[live]}")


def _replay_of(status: dict[str, Any]) -> str:
    texts = [str(each["text"]) for each in status.get("schedulers", {}).values()]
    return texts[0] if texts else "none"


def _catch_up(folder: Path, past: Path) -> dict[str, object]:
    addresses = _free_addresses(3)
    founding = _founding(addresses)
    directories = [folder / f"member-{number}" for number in (1, 2, 3)]
    for number, directory in enumerate(directories[:2], start=1):
        shutil.copytree(past, directory)
        _own(directory, number, founding)
    store = ReplicaStore.open(directories[2], 3, now_ms=0, incarnation="inc3")
    store.commit(Commit((Persist(founding=founding),), cluster=_CLUSTER))
    store.close()
    with _Members(folder, addresses) as members:
        for number in (1, 2):
            members.start(number, directories[number - 1])
        for _ in _waiting(members, "the two that have the past have a leader"):
            if members.status(1).get("leader") and members.status(2).get("leader"):
                break
        began_s = time.perf_counter()
        members.start(3, directories[2])
        for _ in _waiting(members, "the third is level"):
            time.sleep(0.1)  # Real time: likewise.
            third, first = members.status(3), members.status(1)
            if third.get("applied_slot", 0) and third.get("digest") == first.get("digest"):
                break
        seconds = time.perf_counter() - began_s
        return {
            "level_s": round(seconds, 1),
            "memory_mib": round(members.memory_mib(3), 1),
            "mirror_mib": round(_bytes_of(directories[2]) / _MIB, 1),
        }


if __name__ == "__main__":
    sys.exit("python -m bench restart")
