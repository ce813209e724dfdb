"""Archives and unpacked programs of one coordinator: what is deleted when nobody uses it."""

from __future__ import annotations

import asyncio
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from tasksprint.coordination.commands import CancelJob, ForgetJob, SubmitJob, encode_command
from tasksprint.errors import PeerUnreachable, Refused
from tasksprint.process.job_directory import pack
from tasksprint.roles.coordinator import members as members_module
from tasksprint.settings import Settings
from tests.roles.members import Member, members

NODE = json.dumps({"scheduler": ["s.sh"], "node": "attached:x"})


async def decide(member: Member, *commands: SubmitJob | CancelJob | ForgetJob) -> None:
    for command in commands:
        reply = json.loads(await member.coordinator.log.decide(encode_command(command)))
        assert "error" not in reply, reply


def test_archives_and_folders_that_no_job_uses_go_after_a_while(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "s.sh").write_text("#!/bin/sh\necho '{\"ready\":{}}'\nexec cat > /dev/null\n")
    (source / "s.sh").chmod(0o700)
    archive, digest = pack(source, archive_bytes_max=10**6)
    other = b"not asked for by any job"
    other_digest = hashlib.sha256(other).hexdigest()

    async def work() -> None:
        # So long that nothing expires by time: the test makes it so.
        async with members(1, tmp_path / "data", Settings(program_unused_max_ms=10**9)) as of:
            member = await of.leader()
            programs = member.coordinator.archives

            async def there() -> tuple[bool, bool, bool]:
                await programs.sweep()
                # As if all that isn't in use had been unused for long.
                for uses in (programs._archive_uses, programs._folder_uses):
                    uses._used_ms = dict.fromkeys(uses._used_ms, -(10**10))
                await programs.sweep()
                return (
                    await programs.read(digest) is not None,
                    await programs.read(other_digest) is not None,
                    (programs._directory / digest).is_dir(),
                )

            await programs.keep(archive)
            await programs.keep(other)
            await decide(member, SubmitJob("me", 1, "job", 1, "{}", digest, NODE))
            await programs.unpacked(digest)
            assert await there() == (True, False, True)
            await decide(member, CancelJob("me", 2, 1, ""))  # type: ignore[arg-type]
            # The job's summary still names the archive; no scheduler needs the folder.
            assert await there() == (True, False, False)
            await decide(member, ForgetJob("me", 3, 1))  # type: ignore[arg-type]
            assert await there() == (False, False, False)
            # It may come back at any time.
            await programs.keep(archive)
            assert (await programs.unpacked(digest)).is_dir()

    asyncio.run(asyncio.wait_for(work(), 20))


def test_what_a_killed_process_left_is_deleted_at_the_start(tmp_path: Path) -> None:
    folder = tmp_path / "replica-1" / "programs"
    for name in (".gone.abc", ".0123456789abcdef.xyz", "whole"):
        (folder / name).mkdir(parents=True)
        (folder / name / "node.py").write_text("")
    left = [Path("whole"), Path("whole.setup")]
    (folder / "whole.setup").touch()

    async def work() -> None:
        async with members(1, tmp_path):
            while sorted(path.relative_to(folder) for path in folder.iterdir()) != left:
                await asyncio.sleep(0.002)

    asyncio.run(asyncio.wait_for(work(), 20))
    assert (folder / "whole" / "node.py").is_file()


@pytest.mark.slow
def test_archive_stays_while_its_replica_hears_no_leader(tmp_path: Path) -> None:
    """1. An archive is kept on 1 and 2, and 2 is cut off. 2. The job that names it is chosen by
    1 and 3. 3. After an hour 2 deleted the archive. 4. 1 is lost before 3 fetched it.
    """

    async def work() -> None:
        # Nobody sweeps by itself meanwhile.
        async with members(3, tmp_path, Settings(program_unused_max_ms=10**9)) as of:
            leader = await of.leader()
            one, others = leader, [member for member in of.all if member is not leader]
            programs = one.coordinator.archives

            async def is_kept(digest: str) -> bool:
                await programs.sweep()
                return await programs.has(digest)

            def grow_old() -> None:
                uses = programs._archive_uses
                uses._used_ms = dict.fromkeys(uses._used_ms, -(10**10))

            digest = await programs.keep(b"archive")
            for other in others:
                await other.stop()
            while one.coordinator.replica.leader is not None:
                await asyncio.sleep(0.002)
            grow_old()
            assert await is_kept(digest)
            for other in others:
                await other.start()
            await of.leader()
            while one.coordinator.standing.why_not_level() is not None:
                await asyncio.sleep(0.002)
            assert await is_kept(digest)  # Only now its time begins.
            grow_old()
            assert not await is_kept(digest)

    asyncio.run(asyncio.wait_for(work(), 20))


def test_archive_needs_no_copy_on_members_that_were_removed(tmp_path: Path) -> None:
    """The last member asked those of `--peers` again, and could take no job any more."""

    async def work() -> None:
        async with members(3, tmp_path) as of:
            leader = await of.leader()
            for gone in [member for member in of.all if member is not leader]:
                await leader.coordinator.members.remove(gone.number)
                while not leader.coordinator.replica.membership_governs:
                    await asyncio.sleep(0.002)
                await gone.stop()
                of.all.remove(gone)
            digest = await leader.coordinator.archives.keep_on_quorum(b"archive")
            assert digest == hashlib.sha256(b"archive").hexdigest()

    asyncio.run(asyncio.wait_for(work(), 20))


def test_archive_is_kept_on_a_quorum_of_voters_whoever_else_takes_part(tmp_path: Path) -> None:
    """A member that is to be added has it, too, but may never come to vote."""

    async def work() -> None:
        async with members(2, tmp_path) as of:
            leader = await of.leader()
            (other,) = [member for member in of.all if member is not leader]
            assert leader.coordinator.roster.others() == {other.number: other.address}
            await other.stop()
            of.all.remove(other)
            with pytest.raises(PeerUnreachable, match=r"reached 1 of 2 coordinators, expected 2"):
                await leader.coordinator.archives.keep_on_quorum(b"archive")

    asyncio.run(asyncio.wait_for(work(), 20))


def test_archive_is_denied_only_if_a_quorum_lacks_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A leader that lacks it, while who has it is away, doesn't know that it isn't there."""
    digest = hashlib.sha256(b"archive").hexdigest()
    fields = {"sender": "me", "request": 1, "name": "x", "seed": 1, "params": "{}"}
    manifest = json.dumps({"scheduler": ["s.sh"], "node": ["n.sh"]})
    body = json.dumps({**fields, "program": digest, "manifest": manifest}).encode()

    async def work() -> None:
        async with members(3, tmp_path) as of:
            leader = await of.leader()
            others = [member.address for member in of.all if member is not leader]
            away: list[str] = []
            request = leader.coordinator.http.request

            async def asked(address: str, method: str, path: str, **options: Any) -> Any:
                if address in away and path.startswith("/v1/archives/"):
                    raise PeerUnreachable(f"{address} is cut off")
                return await request(address, method, path, **options)

            monkeypatch.setattr(leader.coordinator.http, "request", asked)
            # This one and another lack it: then no two of three can have it.
            for away_now, expected in (([], 404), (others[:1], 404), (others, 503)):
                away[:] = away_now
                answer = await leader.ask("POST", "/v1/jobs", body=body)
                assert answer.status == expected, answer.body
                assert (await leader.ask("GET", f"/v1/archives/{digest}")).status == expected
            assert "at 1 of 3 coordinators, and the others may have it" in answer.json()["error"]
            # What a running job needs was kept by somebody, who may be a member no more.
            away.clear()
            await decide(leader, SubmitJob("me", 2, "job", 1, "{}", digest, NODE))
            assert (await leader.ask("GET", f"/v1/archives/{digest}")).status == 503

    asyncio.run(asyncio.wait_for(work(), 20))


def test_members_change_only_once_those_who_stay_have_what_running_jobs_need(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All who held a running job's archive were replaced and removed, and it was gone."""
    digest = hashlib.sha256(b"archive").hexdigest()

    async def work() -> None:
        async with members(3, tmp_path) as of:
            leader = await of.leader()
            programs, changes = leader.coordinator.archives, leader.coordinator.members
            first, second = [member for member in of.all if member is not leader]
            await programs.keep(b"archive")
            monkeypatch.setattr(programs, "_of_running", lambda: {digest})
            request = leader.coordinator.http.request
            away = [second.address]

            async def asked(address: str, method: str, path: str, **options: Any) -> Any:
                if address in away and path.startswith("/v1/archives"):
                    raise PeerUnreachable(f"{address} is cut off")
                return await request(address, method, path, **options)

            monkeypatch.setattr(leader.coordinator.http, "request", asked)
            with pytest.raises(Refused, match=r"archives of running jobs reached 1 of 2 .* cut"):
                await changes.remove(first.number)
            away.clear()
            await changes.remove(first.number)
            assert await second.coordinator.archives.read(digest) == b"archive"

    asyncio.run(asyncio.wait_for(work(), 20))


def test_members_change_also_if_what_running_jobs_need_takes_long_to_get_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each repetition began with the first archive again, and was given up as the one before."""
    monkeypatch.setattr(members_module, "_SPREAD_S", 0.05)
    archives = [b"first", b"second", b"third"]

    async def work() -> None:
        async with members(3, tmp_path) as of:
            leader = await of.leader()
            programs = leader.coordinator.archives
            gone, stays = [member for member in of.all if member is not leader]
            digests = [await programs.keep(archive) for archive in archives]
            monkeypatch.setattr(programs, "_of_running", lambda: digests)
            request = leader.coordinator.http.request
            sent: list[bytes] = []
            go_on = asyncio.Event()

            async def slow(address: str, method: str, path: str, **options: Any) -> Any:
                if path == "/v1/archives":
                    sent.append(options["body"])
                    await go_on.wait()
                return await request(address, method, path, **options)

            monkeypatch.setattr(leader.coordinator.http, "request", slow)
            body = json.dumps({"change": "remove", "replica": gone.number}).encode()
            for _ in range(2):
                answer = await leader.ask("POST", "/v1/members", body=body)
                assert answer.status == 409
                assert answer.json() == {
                    "error": "those who stay get the archives of running jobs: "
                    "that is under way",
                    "hint": "ask again",
                }
            assert len(sent) == 1  # Another call doesn't send them a second time.
            go_on.set()
            while answer.status != 200:
                answer = await leader.ask("POST", "/v1/members", body=body)
            assert sorted(sent) == sorted(archives)
            assert await stays.coordinator.archives.lacking(digests) == []

    asyncio.run(asyncio.wait_for(work(), 20))


def test_member_that_hangs_is_asked_once_for_all_archives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        async with members(3, tmp_path) as of:
            leader = await of.leader()
            programs = leader.coordinator.archives
            hung, stays = [member for member in of.all if member is not leader]
            digests = [await programs.keep(b"%d" % number) for number in range(5)]
            monkeypatch.setattr(programs, "_of_running", lambda: digests)
            request = leader.coordinator.http.request
            asked: list[str] = []

            async def ask(address: str, method: str, path: str, **options: Any) -> Any:
                if address == hung.address:
                    asked.append(path)
                    await asyncio.Event().wait()
                return await request(address, method, path, **options)

            monkeypatch.setattr(leader.coordinator.http, "request", ask)
            membership = leader.coordinator.replica.membership
            assert membership is not None
            await programs.spread(membership.voters)
            assert asked == ["/v1/archives/lacking"]
            assert await stays.coordinator.archives.lacking(digests) == []

    asyncio.run(asyncio.wait_for(work(), 20))
