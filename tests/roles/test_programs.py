"""Archives and unpacked programs of one coordinator: what is deleted when nobody uses it."""

from __future__ import annotations

import asyncio
import hashlib
import json
from pathlib import Path

from tasksprint.coordination.commands import CancelJob, ForgetJob, SubmitJob, encode_command
from tasksprint.process.job_directory import pack
from tasksprint.settings import Settings
from tests.roles.members import Member, members

NODE = json.dumps({"scheduler": ["s.sh"], "node": "attached:x"})


async def decide(member: Member, *commands: SubmitJob | CancelJob | ForgetJob) -> None:
    for command in commands:
        reply = json.loads(await member.coordinator.decide(encode_command(command)))
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
            programs = member.coordinator.programs

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
