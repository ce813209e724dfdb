"""One coordinator process under what befalls it: bad input, a full disk, crashes, load."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from tasksprint.consensus import Accept, Ballot, Envelope
from tasksprint.consensus import codec as replica_codec
from tasksprint.coordination.commands import (
    Answer,
    AnswerPart,
    Command,
    JoinClient,
    SubmitJob,
    Tick,
    encode_command,
)
from tasksprint.encoding import encode_json
from tasksprint.errors import DiskFull, PeerUnreachable, Refused, RemoteProtocolError, StoreError
from tasksprint.ids import Incarnation, JobId, ReplicaId, Slot, TaskId
from tasksprint.process.job_directory import pack
from tasksprint.protocol.replica_frames import encode_body
from tasksprint.roles.coordinator import applying, durable
from tasksprint.roles.coordinator.ports import NotLeader
from tasksprint.roles.coordinator.turns import NEVER_MS
from tasksprint.scheduler_commands import WriteLog
from tasksprint.settings import Settings
from tasksprint.store import writer as writer_module
from tasksprint.store.records import AppliedPoint
from tests.archives import packed
from tests.coordination.world import look_inside
from tests.roles.members import Member, members
from tests.store.memory_store import MemoryReplicaStore

JOIN = JoinClient("aa", Incarnation("bb"), None, "host", 2)
NO_TICKS = Settings(tick_interval_ms=1_000_000_000)
# Answers nothing, as long as it is asked nothing.
QUIET = "#!/bin/sh\necho '{\"ready\":{}}'\nexec cat > /dev/null\n"


# Only a test that fails waits for so long, also on a machine with much else to do.
def run(main: Callable[[], Coroutine[Any, Any, None]], *, limit_s: float = 100) -> None:
    asyncio.run(asyncio.wait_for(main(), limit_s))


async def until(condition: Callable[[], object], what: str, *, limit_s: float = 60) -> None:
    loop = asyncio.get_running_loop()
    end_s = loop.time() + limit_s
    while not condition():
        assert loop.time() < end_s, f"still not so after {limit_s} s: {what}"
        await asyncio.sleep(0.003)


def submission(request: int, program: str = "none", **manifest: Any) -> SubmitJob:
    fields = {"scheduler": ["scheduler.sh"], "node": "attached:x", **manifest}
    fields = {name: value for name, value in fields.items() if value is not None}
    return SubmitJob("me", request, "job", 1, "{}", program, json.dumps(fields))


async def decide(member: Member, command: Command) -> Any:
    return json.loads(await member.coordinator.log.decide(encode_command(command)))


async def archive_of(member: Member, folder: Path, **files: str) -> str:
    """Hand in an archive with these files, all executable, and return its digest."""
    folder.mkdir()
    for name, text in files.items():
        path = folder / name.replace("_", ".")
        path.write_text(text, encoding="utf-8")
        path.chmod(0o700)
    archive, digest = pack(folder, archive_bytes_max=1_000_000)
    (await member.ask("POST", "/v1/programs", body=archive)).checked()
    return digest


async def summary(member: Member, job: int) -> Any:
    return (await member.ask("GET", f"/v1/jobs/{job}")).checked().json()


# --- bad input ---

DEEP = b"[" * 300 + b"]" * 300
DEEPER = b"[" * 1_000 + b"]" * 1_000

BAD_COMMANDS = [
    b"",
    b"\xff",
    b"5",
    b"{}",
    b"[]",
    b"[[]]",
    b'"report"',
    b'["report"]',
    b'["tick",1000,0,[],null,[]]',
    b'["report",-1,"bb",1,0,[],[],[]]',
    b'["report",1,"bb",1.5,0,[],[],[]]',
    b'["report",1,"bb",1,0,[[1]],[],[]]',
    b'["report",1,"bb",1,0,[],[[1,0,1,"error",true,' + b'{"x":' + DEEP + b"}]],[]]",
    b'["join","aa","bb",null,"host",' + DEEPER + b",[]]",
    b'["leave",' + DEEPER + b',"bb"]',
    DEEPER,
    b'["join","aa","bb",null,"host",-1,[]]',
    b'["join","aa","bb",null,"host",1,[[1,2]]]',
]


def test_commands_that_make_no_sense_are_refused_and_harm_nobody(tmp_path: Path) -> None:
    async def main() -> None:
        async with members(1, tmp_path) as of:
            leader = await of.leader()
            for body in BAD_COMMANDS:
                answer = await leader.ask("POST", "/v1/commands", body=body)
                assert answer.status == 400, (body, answer.body)
            assert await decide(leader, JOIN) == {
                "cid": 1,
                "cluster": look_inside(leader.coordinator.log.require_schedule()).cluster,
                "liveness_ms": 5_000,
            }
            assert leader.failure is None

    run(main)


_SUBMITTED = b'{"sender":"s","request":%b,"params":"{}","name":%b,"manifest":%b}'
DEEP_BODIES = [
    ("/v1/members", b'{"change":%b}' % DEEPER[3:-3]),
    ("/v1/members", b'{"change":"add","replica":%b}' % DEEPER[3:-3]),
    ("/v1/members", b'{"change":"add","replica":2,"address":%b}' % DEEPER[3:-3]),
    ("/v1/archives/lacking", b'{"digests":%b}' % DEEPER[3:-3]),
    ("/v1/jobs", DEEPER),
    ("/v1/jobs", _SUBMITTED % (DEEP, b'"n"', b'"{}"')),
    ("/v1/jobs", _SUBMITTED % (b"1", DEEPER[3:-3], b'"{}"')),
    ("/v1/jobs", _SUBMITTED % (b"1", b'"n"', b'"' + DEEPER + b'"')),
    ("/v1/jobs", _SUBMITTED % (b"1", b'"n"', b'"{\\"retries\\":%b}"' % DEEPER[3:-3])),
    ("/v1/jobs/1/cancel", b'{"sender":%b}' % DEEPER[3:-3]),
    ("/v1/jobs/1/forget", b'{"sender":"s","request":%b}' % DEEPER[3:-3]),
]


@pytest.mark.parametrize(("path", "body"), DEEP_BODIES)
def test_body_that_is_nested_too_deeply_to_be_shown_is_refused(
    tmp_path: Path, path: str, body: bytes
) -> None:
    async def main() -> None:
        async with members(1, tmp_path) as of:
            leader = await of.leader()
            answer = await leader.ask("POST", path, body=body)
            assert answer.status == 400, answer.body
            assert len(answer.json()["error"]) < 300

    run(main)


def test_detail_too_deep_to_be_written_again_is_ignored_in_the_log(tmp_path: Path) -> None:
    async def main() -> None:
        async with members(1, tmp_path) as of:
            leader = await of.leader()
            reply = json.loads(await leader.coordinator.log.decide(BAD_COMMANDS[-3]))
            assert "not a command" in reply["error"]
            assert leader.failure is None

    run(main)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/view",
        "/v1/view?cid=1&since=-1&incarnation=bb",
        "/v1/view?cid=x",
        "/v1/view?cid=1&incarnation=bb&since=9223372036854775808",
        "/v1/jobs/9999999999999999999",
        "/v1/jobs/7/tasks/9",
        "/v1/jobs/7/log",
        "/v1/archives/..%2f..%2fkey",
    ],
)
def test_questions_that_make_no_sense_are_refused(path: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with members(1, tmp_path) as of:
            leader = await of.leader()
            await decide(leader, JOIN)
            answer = await leader.ask("GET", path)
            assert 400 <= answer.status < 500, answer.body
            assert leader.failure is None

    run(main)


@pytest.mark.parametrize(
    "manifest",
    [
        {"scheduler": None},
        {"scheduler": 5},
        {"scheduler": []},
        {"scheduler": [5]},
        {"scheduler": ["a\0b"]},
        {"scheduler": ["x" * 5_000]},
        {"interpreter": 5},
    ],
    ids=str,
)
def test_manifest_that_cant_be_used_ends_its_job_and_no_coordinator(
    manifest: dict[str, Any], tmp_path: Path
) -> None:
    async def main() -> None:
        async with members(1, tmp_path) as of:
            leader = await of.leader()
            digest = await archive_of(leader, tmp_path / "job", scheduler_py="")
            if "interpreter" in manifest:
                manifest["scheduler"] = ["scheduler.py"]
            # As an older release let it through: it stands in the log.
            command = submission(1, digest, **manifest)
            job = (await decide(leader, command))["job"]
            schedule = leader.coordinator.log.require_schedule()
            await until(lambda: not schedule.is_running(job), "the job has failed")
            assert (await summary(leader, job))["state"] == "failed"
            assert leader.failure is None
            await until(lambda: not leader.coordinator.runners, "nothing is left of it")

    run(main)


def test_job_whose_archive_nobody_has_can_be_cancelled(tmp_path: Path) -> None:
    async def main() -> None:
        async with members(1, tmp_path) as of:
            leader = await of.leader()
            job = (await decide(leader, submission(1, "0" * 64)))["job"]
            coordinator = leader.coordinator
            await until(lambda: coordinator.archives._unpacking, "the archive is looked for")
            body = encode_json({"sender": "me", "request": 2, "reason": "enough"})
            (await leader.ask("POST", f"/v1/jobs/{job}/cancel", body=body)).checked()
            await until(lambda: not coordinator.runners, "its scheduler is given up")
            assert not coordinator.archives._unpacking
            assert leader.failure is None

    run(main)


BAD_FRAMES: list[list[Any]] = [
    ["accept", "1", 2, 1, 1],
    ["accept", 1, 2, -1, 1],
    ["accept", 1, 2, 1, None],
    ["accepted", 1, 2, 7],
    ["accepted", 1, 2, ["x"]],
    ["promise", 1, 2, 1, [[1, 2]]],
    ["heartbeat", 1, 2, 1.5, 1],
    ["hello", "here", 5, None, []],
    ["canvass-reply", 1, 1, 1, 1],
]


def test_frame_of_a_wrong_shape_is_refused_before_it_changes_anything(tmp_path: Path) -> None:
    async def main() -> None:
        async with members(1, tmp_path) as of:
            leader = await of.leader()
            for fields in BAD_FRAMES:
                frame = encode_body([2, "aa", 9, 3, 5, *fields], [b""], encode_json=encode_json)
                with pytest.raises(RemoteProtocolError, match="can't be understood"):
                    leader.coordinator.peers._frame_arrived(ReplicaId(2), frame)
            assert leader.failure is None

    run(main)


def test_bug_of_the_core_stops_the_replica(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with members(1, tmp_path) as of:
            leader = await of.leader()
            coordinator = leader.coordinator

            def receive(envelope: Envelope, now_ms: int) -> None:
                raise AssertionError("two values in slot 1")

            monkeypatch.setattr(coordinator.replica, "receive", receive)
            accept = Accept(Ballot(1, ReplicaId(2)), Slot(1), b"", Slot(1))
            envelope = Envelope(ReplicaId(2), Incarnation("aa"), ReplicaId(1), accept)
            with pytest.raises(PeerUnreachable, match="a bug in its core"):
                coordinator.peers._frame_arrived(ReplicaId(2), replica_codec.encode(envelope))
            assert isinstance(leader.failure, AssertionError)
            with pytest.raises(NotLeader, match="replica 1 stops"):
                await decide(leader, JOIN)

    run(main)


def test_bug_of_a_handler_ends_one_answer_and_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with members(1, tmp_path) as of:
            leader = await of.leader()

            def output(job: JobId) -> str:
                raise ValueError("a bug in what is only read")

            monkeypatch.setattr(leader.coordinator.runners, "output", output)
            leader.bugs_expected = 1
            await decide(leader, submission(1))
            answer = await leader.ask("GET", "/v1/jobs/1/log")
            assert answer.status == 500
            assert answer.json()["error"] == "a bug in this process: ValueError"
            metrics = (await leader.ask("GET", "/metrics")).body.decode()
            assert "\ntasksprint_bugs_total 1\n" in metrics
            assert leader.failure is None
            assert (await leader.ask("GET", "/v1/jobs")).status == 200

    run(main)


# --- sizes ---


def test_command_larger_than_the_log_takes_is_refused(tmp_path: Path) -> None:
    async def main() -> None:
        async with members(1, tmp_path, Settings(command_bytes_max=1_000)) as of:
            leader = await of.leader()
            big = JoinClient("aa", Incarnation("bb"), None, "h" * 2_000, 2)
            answer = await leader.ask("POST", "/v1/commands", body=encode_command(big))
            assert answer.status == 413
            assert "at most 1000 (command_bytes_max)" in answer.json()["error"]
            # Neither may it come by way of another replica.
            assert not leader.coordinator.replica.propose(encode_command(big), 0)

    run(main)


def test_too_many_commands_are_told_that_the_leader_is_busy(tmp_path: Path) -> None:
    async def main() -> None:
        async with members(1, tmp_path, Settings(waiting_commands_max=0)) as of:
            leader = await of.leader()
            with pytest.raises(Refused, match="is busy") as caught:
                await decide(leader, JOIN)
            assert caught.value.status == 503

    run(main)


BIG_ANSWER = """#!/bin/sh
echo '{"ready":{}}'
text=$(head -c 300000 /dev/zero | tr '\\0' x)
while read -r line; do
  case $line in *'"kind":"init"'*)
    printf '{"event":0,"commands":[{"start":"a","base":["%s"]}]}\\n' "$text";;
  esac
done
"""


@pytest.mark.slow
def test_answer_larger_than_the_log_takes_fails_its_job_with_a_sentence(tmp_path: Path) -> None:
    async def main() -> None:
        settings = Settings(command_bytes_max=200_000, answer_grace_ms=50)
        async with members(3, tmp_path, settings) as of:
            leader = await of.leader()
            digest = await archive_of(leader, tmp_path / "job", scheduler_sh=BIG_ANSWER)
            job = (await decide(leader, submission(1, digest)))["job"]
            schedule = leader.coordinator.log.require_schedule()
            await until(lambda: not schedule.is_running(job), "the job has failed")
            error = (await summary(leader, job))["error"]
            assert "its answer to event 0 has 300" in error
            assert "at most 200000 (command_bytes_max); cut it into parts" in error
            assert [member.failure for member in of.all] == [None, None, None]

    run(main)


MANY_BIG_TASKS = """
from TaskSprintCoordinator import TaskSprintCoordinator

class Big(TaskSprintCoordinator):
    def init(self, seed):
        for _ in range(8):
            self.start_task("a", base=["x" * 200_000])

Big().start()
"""


@pytest.mark.slow
def test_answer_of_many_big_tasks_is_cut_so_that_each_part_fits(tmp_path: Path) -> None:
    async def main() -> None:
        settings = Settings(command_bytes_max=700_000, frame_bytes_max=1_500_000)
        async with members(3, tmp_path, settings) as of:
            leader = await of.leader()
            digest = await archive_of(leader, tmp_path / "job", scheduler_py=MANY_BIG_TASKS)
            command = submission(1, digest, scheduler=["scheduler.py"])
            job = (await decide(leader, command))["job"]
            schedule = leader.coordinator.log.require_schedule()
            state = look_inside(schedule).jobs[job]
            await until(
                lambda: state.next_tid == 8 or not schedule.is_running(job),
                "all tasks are started",
            )
            assert [member.failure for member in of.all] == [None, None, None]
            assert state.next_tid == 8, (await summary(leader, job))["error"]

    run(main)


# --- the disk ---


def test_full_disk_stops_the_coordinator_and_acknowledges_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        async with members(1, tmp_path) as of:
            leader = await of.leader()
            await decide(leader, JOIN)
            leader.directory.is_full = True
            asked = asyncio.ensure_future(decide(leader, submission(1)))
            await until(lambda: leader.failure is not None, "it stops")
            assert isinstance(leader.failure, StoreError)
            assert "the disk is full" in str(leader.failure)
            await leader.stop()
            with pytest.raises(NotLeader):
                await asked
            leader.directory.is_full = False
            await leader.start()
            again = await of.leader()
            schedule = again.coordinator.log.require_schedule()
            await until(lambda: again.coordinator.log.is_current, "it leads again")
            assert schedule.living_clients() == ((1, "bb", 0),)
            assert schedule.jobs() == []

    run(main)


def test_archive_that_finds_the_disk_full_stops_the_coordinator(tmp_path: Path) -> None:
    """Its store takes nothing after that: it must not stay and refuse, nor end as by a bug."""

    async def main() -> None:
        async with members(1, tmp_path) as of:
            leader = await of.leader()
            leader.directory.is_full = True
            with pytest.raises(DiskFull):
                await leader.coordinator.archives.keep(b"an archive")
            await until(lambda: leader.failure is not None, "it stops")
            assert isinstance(leader.failure, DiskFull)

    run(main)


class _Killed(Exception):
    """The process ends here."""


@pytest.mark.parametrize("is_written", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("at_write", range(1, 13))
@pytest.mark.parametrize("on_loop", [False, True], ids=["thread", "loop"])
def test_kill_around_a_write_loses_nothing_acknowledged_and_repeats_nothing(
    on_loop: bool,
    at_write: int,
    is_written: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each write of the first life is once the last: just before it, or just after.

    Written by the thread, with rows in each; or by the loop, and rows wait for company.
    """
    monkeypatch.setattr(durable, "_MIRROR_IDLE_MS", 1_000_000 if on_loop else 0)
    monkeypatch.setattr(writer_module, "_QUICK_WRITES", 0 if on_loop else 1_000_000)
    commit_all = MemoryReplicaStore.commit_all
    count = 0

    def killed(self: MemoryReplicaStore, commits: Any) -> None:
        nonlocal count
        count += 1
        if count == at_write:
            if is_written:
                commit_all(self, commits)
            raise _Killed
        commit_all(self, commits)

    async def main() -> None:
        replies: dict[int, Any] = {}
        async with members(1, tmp_path, NO_TICKS) as of:
            member = of.all[0]
            monkeypatch.setattr(MemoryReplicaStore, "commit_all", killed)
            coordinator = member.coordinator
            stopped = coordinator.turns.stopped
            await until(
                lambda: stopped.done() or coordinator.log.is_current, "it leads, or not"
            )
            for request in range(1, 9):
                if stopped.done():
                    break
                asked = asyncio.ensure_future(decide(member, submission(request)))
                await asyncio.wait({asked, stopped}, return_when="FIRST_COMPLETED")
                if not asked.done():
                    asked.cancel()
                elif asked.exception() is None:
                    replies[request] = asked.result()
            monkeypatch.setattr(MemoryReplicaStore, "commit_all", commit_all)
            await member.stop()
            member.directory.crash()
            await member.start()
            await until(lambda: member.coordinator.log.is_current, "it leads again")
            for request, reply in replies.items():
                assert await decide(member, submission(request)) == reply
            for request in range(1, 10):
                replies[request] = await decide(member, submission(request))
            assert replies == {number: {"job": number} for number in range(1, 10)}
            member.coordinator.log.require_schedule().check()

    run(main)


def test_rows_of_the_mirror_wait_for_company(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was changed again meanwhile is written once, and with it how far it goes."""
    monkeypatch.setattr(durable, "_MIRROR_IDLE_MS", 1_000_000)

    async def main() -> None:
        async with members(1, tmp_path, NO_TICKS) as of:
            coordinator = (await of.leader()).coordinator
            before = await coordinator.writer.run(lambda store: store.applied)
            for request in range(1, 6):
                await decide(of.all[0], submission(request))
            held = coordinator.durable.unwritten_rows("senders", ())
            assert len(held) == 5 and len({row.key for row in held}) == 1
            assert await coordinator.writer.run(lambda store: store.applied) == before
            assert len(await coordinator.writer.run(lambda store: store.read_log(1, 99, 9999))) > 5
            await coordinator.durable.handed_over()
            point = coordinator.log.require_schedule()
            assert await coordinator.writer.run(lambda store: store.applied) == AppliedPoint(
                point.applied_slot, point.digest
            )
            assert coordinator.durable.unwritten_rows("senders", ()) == []
            assert [held[-1]] == await coordinator.writer.run(
                lambda store: list(store.read_range("senders"))
            )

    run(main)


def test_lines_of_a_jobs_log_are_shown_before_they_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(durable, "_MIRROR_IDLE_MS", 1_000_000)

    async def main() -> None:
        async with members(1, tmp_path, NO_TICKS) as of:
            leader = await of.leader()
            job = (await decide(leader, submission(1)))["job"]
            for part, text in enumerate(["one", "two"]):
                parts = (AnswerPart(0, part, False, TaskId(0), (WriteLog(text),)),)
                await decide(leader, Answer(JobId(job), parts))
                log = (await leader.ask("GET", f"/v1/jobs/{job}/log")).json()["log"]
                assert log == ["one", "two"][: part + 1]

    run(main)


# --- turns ---


def test_lone_command_is_proposed_at_once_and_others_gather_behind_it(tmp_path: Path) -> None:
    async def main() -> None:
        async with members(3, tmp_path, NO_TICKS) as of:
            leader = await of.leader()
            coordinator = leader.coordinator
            replica = coordinator.replica
            await until(
                lambda: coordinator.log.is_current
                and not (coordinator.turns.is_due or coordinator.durable.is_writing)
                and not replica.has_work,
                "nothing is under way",
            )
            first_slot = replica.chosen_end
            replies: list[bytes | None] = []
            decide_then = coordinator.log.decide_then
            decide_then(encode_command(submission(1)), None, replies.append)
            assert replica.status().open_slots == 1
            for request in range(2, 8):
                decide_then(encode_command(submission(request)), None, replies.append)
            await until(lambda: len(replies) == 7, "all are decided")
            assert replies == [b'{"job":%d}' % number for number in range(1, 8)]
            assert replica.chosen_end == first_slot + 2

    run(main)


# --- time ---


def test_waiting_for_the_disk_costs_no_turns(tmp_path: Path) -> None:
    async def main() -> None:
        async with members(1, tmp_path, Settings(tick_interval_ms=5)) as of:
            leader = await of.leader()
            coordinator = leader.coordinator
            gate = threading.Event()
            coordinator.writer.run(lambda store: gate.wait(60))
            await until(lambda: coordinator.ticks._is_waiting, "a tick waits for the disk")
            assert coordinator.ticks.find_due_ms() == NEVER_MS
            turns = 0
            turn = coordinator.turns.take

            def counted() -> None:
                nonlocal turns
                turns += 1
                turn()

            coordinator.turns.take = counted  # type: ignore[method-assign]
            for _ in range(1_000):
                await asyncio.sleep(0)
            gate.set()
            assert turns < 100
            log_time_ms = coordinator.ticks.log_time_ms
            await until(lambda: coordinator.ticks.log_time_ms > log_time_ms, "ticks go on")

    run(main)


def test_clients_that_were_never_there_leave_no_trace(tmp_path: Path) -> None:
    async def main() -> None:
        async with members(1, tmp_path, Settings(tick_interval_ms=1)) as of:
            leader = await of.leader()
            for cid in range(100, 120):
                body = b'["report",%d,"zz",1,0,[],[],[]]' % cid
                assert "error" in (await leader.ask("POST", "/v1/commands", body=body)).json()
            assert len(leader.coordinator.ticks._last_heard) <= 20
            await until(lambda: not leader.coordinator.ticks._last_heard, "they are forgotten")

    run(main)


def test_who_does_not_lead_or_has_to_apply_hears_nobody(tmp_path: Path) -> None:
    """Log time there is an older one: by it a client would have been silent for long."""

    async def main() -> None:
        async with members(3, tmp_path) as of:
            leader = await of.leader()
            for member in of.all:
                member.coordinator.ticks.heard(Incarnation("bb"))
                is_noted = Incarnation("bb") in member.coordinator.ticks._last_heard
                assert is_noted == (member is leader)

    run(main)


def test_client_that_joins_again_and_again_is_not_silent(tmp_path: Path) -> None:
    """Its first join counts, but no answer may have reached it."""
    body = b'["join","aa","bb","127.0.0.1:1","host",1,[]]'

    async def main() -> None:
        async with members(1, tmp_path, Settings(tick_interval_ms=1)) as of:
            leader = await of.leader()
            coordinator = leader.coordinator
            (await leader.ask("POST", "/v1/commands", body=body)).checked()
            began_ms = coordinator.ticks.log_time_ms
            await until(lambda: coordinator.ticks.log_time_ms > began_ms + 20, "it is silent")
            since_ms = coordinator.ticks.log_time_ms
            (await leader.ask("POST", "/v1/commands", body=body)).checked()
            assert coordinator.ticks._last_heard[Incarnation("bb")] >= since_ms

    run(main)


def mirror_of(member: Member) -> tuple[AppliedPoint, Any]:
    """Return what a disk's mirror holds now, to be put back later."""
    content = member.directory.content
    assert content is not None
    return content.applied, {table: dict(rows) for table, rows in content.mirror.items()}


def put_back(member: Member, mirror: tuple[AppliedPoint, Any]) -> None:
    """Make the disk one whose mirror has lagged behind since: the rest is in the log."""
    content = member.directory.content
    assert content is not None
    content.applied, content.mirror = mirror


def slow_down(monkeypatch: pytest.MonkeyPatch, entries: int) -> None:
    """Let each turn apply one entry, and let turns pass before the next one."""
    apply_some = applying.Applying.apply_some
    turns = 0

    def rarely(self: applying.Applying, now_ms: int) -> None:
        nonlocal turns
        turns += 1
        if turns % 50 == 0 or turns > 50 * entries:
            apply_some(self, now_ms)
        else:
            self._turns.wake()

    monkeypatch.setattr(applying, "_APPLY_MS_MAX", -1)
    monkeypatch.setattr(applying.Applying, "apply_some", rarely)


def test_new_leader_that_still_applies_the_log_sends_no_client_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with members(1, tmp_path, NO_TICKS) as of:
            leader = await of.leader()
            mirror = mirror_of(leader)
            for number in range(1, 40):
                await decide(leader, submission(number))
            await decide(leader, JOIN)
            await leader.stop()
            put_back(leader, mirror)
            slow_down(monkeypatch, 45)
            await leader.start()
            seen = set()
            while 200 not in seen:
                path = "/v1/view?cid=1&incarnation=bb&since=1"
                seen.add((await leader.ask("GET", path)).status)
            assert seen <= {200, 421}

    run(main)


def test_log_time_in_the_logs_tail_kills_no_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A leader that begins to listen in the past must not count that time as silence."""

    async def main() -> None:
        async with members(1, tmp_path, NO_TICKS) as of:
            leader = await of.leader()
            await decide(leader, JOIN)
            await until(lambda: mirror_of(leader)[0].slot == 2, "the mirror is written")
            mirror = mirror_of(leader)
            for number in range(20):
                await decide(leader, Tick(1_000, number))
            await leader.stop()
            put_back(leader, mirror)
            slow_down(monkeypatch, 25)
            of.settings = Settings(tick_interval_ms=1)
            await leader.start()
            coordinator = leader.coordinator
            await until(lambda: coordinator.state.end_slot > 32, "ticks go on")
            assert coordinator.ticks.log_time_ms > 20_000
            assert len(coordinator.log.require_schedule().living_clients()) == 1

    run(main)


# --- who waits for an answer ---


def test_two_senders_of_the_same_bytes_both_get_the_answer(tmp_path: Path) -> None:
    async def main() -> None:
        async with members(1, tmp_path) as of:
            leader = await of.leader()
            both = await asyncio.gather(decide(leader, JOIN), decide(leader, JOIN))
            assert both[0] == both[1]
            assert both[0]["cid"] == 1
            assert not leader.coordinator._decisions

    run(main)


@pytest.mark.slow
def test_requests_are_answered_when_the_quorum_is_lost(tmp_path: Path) -> None:
    async def main() -> None:
        async with members(3, tmp_path) as of:
            leader = await of.leader()
            await decide(leader, JOIN)
            for member in of.all:
                if member is not leader:
                    await member.stop()
            body = encode_command(submission(1))
            answers = await asyncio.gather(
                leader.ask("POST", "/v1/commands", body=encode_command(JOIN)),
                leader.ask("GET", "/v1/jobs"),
                leader.ask("GET", "/v1/view?cid=1&incarnation=bb&wait_ms=1500&since=99"),
            )
            assert [answer.status for answer in answers] == [421, 421, 421]
            with pytest.raises(NotLeader):
                await leader.coordinator.log.decide(body)
            coordinator = leader.coordinator
            assert not coordinator._decisions and not coordinator.log._reads
            for member in of.all:
                if member is not leader:
                    await member.start()
            again = await of.leader()
            assert (await decide(again, JOIN))["cid"] == 1

    run(main)


@pytest.mark.slow
def test_leader_that_stood_still_asks_before_it_says_that_a_client_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with members(3, tmp_path) as of:
            # Whoever leads in the end: on a busy machine the first one may have lost office.
            await until(
                lambda: any(
                    each.coordinator.log.is_current and not each.coordinator.turns.is_due
                    for each in of.all
                ),
                "one leads",
            )
            old = next(each for each in of.all if each.coordinator.log.is_current)
            coordinator = old.coordinator
            # It stands still, but for what its server is asked: as after SIGCONT, when
            # requests are read before anything else is done.
            monkeypatch.setattr(coordinator.turns, "wake", lambda: None)
            monkeypatch.setattr(coordinator.peers.streams, "on_frame", lambda source, frame: None)
            monkeypatch.setattr(coordinator.turns, "_timer_fired", lambda: None)
            assert coordinator.turns._timer is not None
            coordinator.turns._timer.cancel()
            cid = await joined([each for each in of.all if each is not old])
            asked = asyncio.ensure_future(old.ask("GET", f"/v1/view?cid={cid}&incarnation=bb"))
            await until(lambda: coordinator.log._reads or asked.done(), "it asks the others")
            assert not asked.done()
            monkeypatch.undo()
            coordinator.turns.wake()
            assert (await asked).status == 421

    run(main)


async def joined(among: list[Member]) -> int:
    """Have a client join at whoever of these leads; return its number."""
    while True:
        for member in among:
            if member.coordinator.log.is_current:
                with contextlib.suppress(NotLeader):  # The same command again is the same join.
                    found: int = (await decide(member, JOIN))["cid"]
                    return found
        await asyncio.sleep(0.003)


# --- schedulers and archives ---

ONE_FAILS = """#!/bin/sh
case $PWD in */replica-2/*) echo broken >&2; exit 3;; esac
exec ./quiet.sh
"""


@pytest.mark.slow
def test_scheduler_that_is_out_on_one_replica_is_told_to_the_log_once(tmp_path: Path) -> None:
    async def main() -> None:
        async with members(3, tmp_path, Settings(answer_grace_ms=20)) as of:
            leader = await of.leader()
            folder = tmp_path / "job"
            files = {"scheduler_sh": ONE_FAILS, "quiet_sh": QUIET}
            digest = await archive_of(leader, folder, **files)
            job = (await decide(leader, submission(1, digest)))["job"]
            schedule = leader.coordinator.log.require_schedule()
            await until(lambda: schedule.is_out(job, ReplicaId(2)), "replica 2 is out")
            runner = of.all[1].coordinator.runners.get(job)
            assert runner is not None
            # It has nothing more to say then (tests/hosting/test_host.py).
            await until(lambda: runner._host.deadline_ms is None, "replica 2 knows that")
            assert schedule.is_running(job)

    run(main)


def test_archive_counts_as_kept_by_a_quorum_though_one_member_answers_nonsense(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with members(3, tmp_path) as of:
            leader = await of.leader()
            others = [member.address for member in of.all if member is not leader]
            request = leader.coordinator.http.request

            async def asked(address: str, method: str, path: str, **options: Any) -> Any:
                if address == others[0]:
                    raise RemoteProtocolError("it answered what is no HTTP")
                return await request(address, method, path, **options)

            monkeypatch.setattr(leader.coordinator.http, "request", asked)
            answer = await leader.ask("POST", "/v1/programs", body=packed())
            assert answer.status == 200, answer.body

    run(main)


def test_archive_that_reaches_no_quorum_is_refused(tmp_path: Path) -> None:
    async def main() -> None:
        async with members(3, tmp_path) as of:
            leader = await of.leader()
            for member in of.all:
                if member is not leader:
                    await member.stop()
            answer = await leader.ask("POST", "/v1/programs", body=packed())
            assert answer.status == 503
            assert "reached 1 of 3 coordinators, expected 2" in answer.json()["error"]
            for member in of.all:
                if member is not leader:
                    await member.start()

    run(main)
