"""Archives that an enemy wrote: refused when they are handed in, and no end in the log."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
import zlib
from functools import partial
from pathlib import Path

import pytest

from tasksprint.encoding import encode_json
from tasksprint.errors import RemoteProtocolError
from tasksprint.process.archive import KEEP_DATA_OUT, LIMITS, ArchiveLimits, check_archive, unpack
from tests.archives import END, header, member, packed, zipped
from tests.fuzz import archives as fuzz
from tests.roles.members import Member, members
from tests.roles.test_coordinator import decide, run, submission, summary, until

MIB = 1024 * 1024


def bomb(*parts: bytes, zeros: int) -> bytes:
    """Return an archive of these parts and then so many zeros, made without holding them."""
    packer = zlib.compressobj(wbits=16 + zlib.MAX_WBITS)
    result = [packer.compress(part) for part in parts]
    result += [packer.compress(bytes(MIB)) for _ in range(zeros // MIB)]
    return b"".join([*result, packer.flush()])


def digits(count: int) -> bytes:
    """Return an archive whose pax header is nothing but digits."""
    return zipped(member("PaxHeaders/x", b"1" * count, b"x"), member("x"), END)


def test_long_run_of_digits_takes_no_time() -> None:
    """The library's regular expression took 0.3 s for 10,000, and 19 s for 100,000."""
    before_s = time.process_time()
    for count in (1_000, 60_000, 1_000_000, 10_000_000):
        with pytest.raises(RemoteProtocolError, match="extended header"):
            check_archive(digits(count))
    assert time.process_time() - before_s < 1


@pytest.mark.parametrize("kind", [b"x", b"g", b"L"])
def test_header_of_gigabytes_is_refused_unread(kind: bytes) -> None:
    archive = bomb(header("x", kind, 2 << 30), zeros=8 * MIB)
    before_s = time.process_time()
    with pytest.raises(RemoteProtocolError) as caught:
        check_archive(archive)
    assert str(caught.value) == (
        "the archive has an extended header of 2147483648 bytes, at most 65536"
    )
    assert time.process_time() - before_s < 0.1


def test_link_with_a_name_of_gigabytes_is_refused_unread() -> None:
    with pytest.raises(RemoteProtocolError, match="is a link with a long name"):
        check_archive(bomb(header("x", b"K", 2 << 30), zeros=8 * MIB))


@pytest.mark.slow
def test_bomb_is_read_in_pieces_and_only_up_to_the_limit(tmp_path: Path) -> None:
    """Beside, in a process of its own: how much memory it took."""
    path = tmp_path / "bomb"
    path.write_bytes(bomb(header("x", size=1000 * MIB), zeros=60 * MIB))
    code = (
        "import resource, sys; from tasksprint.process.archive import *\n"
        "data = open(sys.argv[1], 'rb').read()\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "limits = ArchiveLimits(unpacked_bytes_max=40 << 20)\n"
        "for limits in (limits, LIMITS):\n"
        "    try: check_archive(data, limits)\n"
        "    except Exception as error: print(error)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    command = [sys.executable, "-c", code, str(path)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")
    assert said[:2] == [
        "the archive unpacks to more than 41943040 bytes",
        "the archive is damaged: it ends in the middle of a member",
    ]
    assert int(said[2]) < 16 * 1024  # KiB


def many_files(count: int) -> bytes:
    packer = zlib.compressobj(1, wbits=16 + zlib.MAX_WBITS)
    block = bytearray(header("f000000"))
    at = sum(block[:100]) + sum(block[100:148]) + 8 * 32 + sum(block[156:])
    at -= 6 * ord("0")
    result = []
    for number in range(count):
        digits = b"%06d" % number
        block[1:7] = digits
        block[148:156] = b"%06o\0 " % (at + sum(digits))
        result.append(packer.compress(bytes(block)))
    return b"".join([*result, packer.compress(END), packer.flush()])


def test_too_many_files_are_refused_at_once() -> None:
    limits = ArchiveLimits(files_max=5_000)
    archive = many_files(20_000)
    before_s = time.process_time()
    with pytest.raises(RemoteProtocolError) as caught:
        check_archive(archive, limits)
    assert str(caught.value) == (
        f"the archive has more than 5000 files and directories; {KEEP_DATA_OUT}"
    )
    assert time.process_time() - before_s < 1


@pytest.mark.long
def test_as_many_files_as_may_be_are_unpacked_before_a_scheduler_must_be_ready(
    tmp_path: Path,
) -> None:
    archive = many_files(LIMITS.files_max)
    before_s = time.monotonic()
    target = unpack(archive, hashlib.sha256(archive).hexdigest(), tmp_path)
    assert time.monotonic() - before_s < 60
    assert len(os.listdir(target)) == LIMITS.files_max
    with pytest.raises(RemoteProtocolError, match="has more than 100000 files"):
        check_archive(many_files(LIMITS.files_max + 1))


@pytest.mark.slow
def test_made_up_archives_are_read_or_refused(tmp_path: Path) -> None:
    """The first inputs of the fuzzer; `python -m tests.fuzz --only archives` goes on."""
    for number in range(100):
        data = fuzz.archive(fuzz.input_random(1, number))
        assert fuzz.what_is_wrong(data, tmp_path) is None, number


# --- in a cluster ---


HOSTILE = {
    "digits": (digits(1_000_000), "the archive has an extended header of 1000000 bytes"),
    "bomb": (bomb(header("x", size=2 << 30), zeros=8 * MIB), "the archive unpacks to more than"),
    "way out": (zipped(member("../../key", b"x"), END), "would leave the job directory"),
    "link": (zipped(member("x", kind=b"2"), END), "is a symbolic link"),
    "cut": (packed()[:-20], "the archive is damaged"),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_archive_is_refused_before_it_is_acknowledged(what: str, tmp_path: Path) -> None:
    archive, why = HOSTILE[what]

    async def main() -> None:
        async with members(1, tmp_path) as of:
            leader = await of.leader()
            answer = await leader.ask("POST", "/v1/programs", body=archive)
            assert answer.status == 400
            assert why in answer.json()["error"]
            # Nor by way of what one member brings to another.
            answer = await leader.ask("POST", "/v1/archives", body=archive)
            digest = answer.checked().json()["digest"]
            body = encode_json(
                {
                    **{"sender": "me", "request": 1, "name": "x", "seed": 1, "params": "{}"},
                    "program": digest,
                    "manifest": '{"scheduler": ["scheduler.sh"], "node": ["attached:me"]}',
                }
            )
            answer = await leader.ask("POST", "/v1/jobs", body=body)
            assert answer.status == 400
            assert why in answer.json()["error"]
            assert (await leader.ask("GET", "/v1/jobs")).json() == []

    run(main)


@pytest.mark.slow
def test_archive_in_the_log_that_cant_be_unpacked_fails_its_job(tmp_path: Path) -> None:
    """On all three; also where a replica that was away hears of it later, after a restart."""
    archive = digits(1_000_000)

    def has_applied(each: Member, slot: int) -> bool:
        return each.coordinator.log.require_schedule().applied_slot >= slot

    async def failed(leader: Member, job: int) -> None:
        schedule = leader.coordinator.log.require_schedule()
        await until(lambda: not schedule.is_running(job), "the job has failed")
        found = await summary(leader, job)
        assert found["state"] == "failed"
        assert "the archive has an extended header of 1000000 bytes" in found["error"]

    async def main() -> None:
        async with members(3, tmp_path) as of:
            leader = await of.leader()
            away = next(each for each in of.all if each is not leader)
            await away.stop()
            digest = await leader.coordinator.archives.keep(archive)
            job = (await decide(leader, submission(1, digest)))["job"]
            await failed(leader, job)
            await away.start()
            # All begin anew while another one runs.
            other = (await decide(leader, submission(2, digest)))["job"]
            for each in of.all:
                await each.stop()
            for each in of.all:
                await each.start()
            leader = await of.leader()
            await until(lambda: leader.coordinator.log.is_current, "it leads")
            await failed(leader, other)
            slot = leader.coordinator.log.require_schedule().applied_slot
            for each in of.all:
                schedule = each.coordinator.log.require_schedule()
                await until(partial(has_applied, each, slot), "it has applied it")
                assert not schedule.running_jobs()
                assert each.failure is None

    run(main)
