"""The manifest: its page tells all of it, and an interpreter may be one that its setup makes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tasksprint.coordination.commands import SubmitJob
from tasksprint.errors import NodeFailed, SchedulerFailed, UsageError
from tasksprint.process.command_line import command_line
from tasksprint.process.job_directory import MANIFEST_MEMBERS, parse_manifest
from tasksprint.process.program_setup import scheduler_needs_setup, set_up
from tests.roles.members import Member, members
from tests.roles.test_coordinator import archive_of, decide, run, submission, summary, until

CHECKOUT = Path(__file__).resolve().parents[2]
PAGE = (CHECKOUT / "docs" / "manifest.md").read_text(encoding="utf-8")
VENV = ".venv/bin/python"
# Without pip it takes 0.1 s.
MAKE_VENV = f"{sys.executable} -m venv --without-pip .venv"

SAYS_ITS_PREFIX = """
import sys
from TaskSprintCoordinator import TaskSprintCoordinator

class Scheduler(TaskSprintCoordinator):
    def init(self, seed):
        self.finish(values={"prefix": sys.prefix})

Scheduler().start()
"""


# --- the page ------------------------------------------------------------------------


def test_page_has_every_member_and_no_other() -> None:
    table = re.findall(r"^\| `(\w+)` \|(.*)\|$", PAGE, re.MULTILINE)
    assert tuple(name for name, _ in table) == MANIFEST_MEMBERS
    for name, rest in table:
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", rest)]
        assert len(cells) == 3 and all(cells), name


def test_examples_of_the_page_are_manifests(tmp_path: Path) -> None:
    for name in ("scheduler.py", "fit.py", "node.py"):
        (tmp_path / name).write_text("")
    (tmp_path / "requirements.txt").write_text("")
    examples = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
    assert len(examples) == 3
    whole = json.loads(examples[0])
    assert tuple(whole) == MANIFEST_MEMBERS
    manifest = parse_manifest(examples[0], directory=tmp_path)
    assert manifest.encode() == parse_manifest(manifest.encode(), directory=tmp_path).encode()
    (tmp_path / "fit.py").unlink()
    for text in examples[1:]:
        parse_manifest(text, directory=tmp_path)


# --- an interpreter that setup makes -------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            VENV,
            "tasksprint.json names the interpreter '.venv/bin/python', which doesn't travel with "
            "the job; let 'setup' make it on each machine, for example "
            '"setup": "python3 -m venv .venv && .venv/bin/pip install -r requirements.txt"',
        ),
        ("bin/python", "which isn't in"),
        ("../python", "expected a file inside the job directory, or a name in PATH"),
    ],
)
def test_interpreter_that_nobody_makes_is_refused(name: str, message: str, tmp_path: Path) -> None:
    for file in ("scheduler.py", "node.py"):
        (tmp_path / file).write_text("")
    text = json.dumps({"interpreter": name})
    with pytest.raises(UsageError) as caught:
        parse_manifest(text, directory=tmp_path)
    assert message in str(caught.value)
    if ".." not in name:
        manifest = parse_manifest(
            json.dumps({"interpreter": name, "setup": "x"}), directory=tmp_path
        )
        assert manifest.interpreter == name


def test_interpreter_of_the_job_is_run_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "node.py").write_text("")
    (tmp_path / "bin").mkdir()
    # A virtual environment is known by the path that its Python was started by.
    (tmp_path / "bin" / "python").symlink_to(sys.executable)

    def line(interpreter: str) -> tuple[str, ...]:
        return command_line(
            "node.py", directory=tmp_path, what="node", failure=NodeFailed, interpreter=interpreter
        )

    assert line("bin/python") == (str(tmp_path / "bin/python"), str(tmp_path / "node.py"))
    with pytest.raises(NodeFailed) as caught:
        line("bin/python9")
    assert str(caught.value) == (
        f"the interpreter 'bin/python9' of the node isn't in '{tmp_path}'; "
        "let the manifest's 'setup' make it on each machine"
    )


def test_scheduler_needs_a_setup_only_for_what_is_missing(tmp_path: Path) -> None:
    directory = tmp_path / "digest"
    directory.mkdir()
    (directory / "scheduler.py").write_text("")
    plain = {"scheduler": ["scheduler.py"], "setup": ["cc", "node.c"]}
    assert not scheduler_needs_setup(directory, plain)
    assert not scheduler_needs_setup(directory, {**plain, "interpreter": "python3"})
    assert not scheduler_needs_setup(directory, {"scheduler": ["scheduler"]})
    assert scheduler_needs_setup(directory, {**plain, "scheduler": ["scheduler"]})
    assert scheduler_needs_setup(directory, {**plain, "interpreter": VENV})


def test_setup_is_run_once_and_again_if_it_was_cut_off(tmp_path: Path) -> None:
    directory = tmp_path / "digest"
    directory.mkdir()
    setup = ["/bin/sh", "-c", "echo again >>count; touch scheduler; test ! -e fails"]
    manifest = {"scheduler": ["scheduler"], "setup": setup}

    async def once() -> None:
        await set_up(directory, setup, {}, timeout_ms=10_000, failure=SchedulerFailed)

    async def main() -> None:
        (directory / "fails").write_text("")
        with pytest.raises(SchedulerFailed, match="ended with exit code 1"):
            await once()
        # What it made may be half of it.
        assert scheduler_needs_setup(directory, manifest)
        (directory / "fails").unlink()
        await once()
        await once()
        assert (directory / "count").read_text() == "again\nagain\n"

    run(main)


@pytest.mark.slow
def test_scheduler_runs_in_the_environment_that_its_setup_makes(tmp_path: Path) -> None:
    """Before: "the interpreter '.venv/bin/python' of the scheduler isn't on this machine"."""

    async def main() -> None:
        async with members(1, tmp_path) as of:
            leader = await of.leader()
            digest = await archive_of(leader, tmp_path / "job", scheduler_py=SAYS_ITS_PREFIX)
            fields = {"scheduler": ["scheduler.py"], "interpreter": VENV}
            made = ["/bin/sh", "-c", MAKE_VENV]
            found = await ended(leader, submission(1, digest, **fields, setup=made))
            assert found["state"] == "finished", found
            folder = leader.coordinator.options.data_dir / "programs" / digest
            assert json.loads(found["values"]) == {"prefix": str(folder / ".venv")}
            # Another job of the same content finds it made.
            before = (folder / ".venv" / "pyvenv.cfg").stat().st_mtime_ns
            again = await ended(leader, submission(2, digest, **fields, setup=made))
            assert again["state"] == "finished"
            assert (folder / ".venv" / "pyvenv.cfg").stat().st_mtime_ns == before
            # And one whose setup fails is told.
            broken = ["/bin/sh", "-c", "echo no such package >&2; exit 3"]
            failed = await ended(leader, submission(3, digest, **fields, setup=broken))
            assert failed["state"] == "failed"
            assert "ended with exit code 3: no such package" in failed["error"]

    run(main)


async def ended(leader: Member, command: SubmitJob) -> Any:
    """Have a job decided, and return how it ended."""
    job = (await decide(leader, command))["job"]
    schedule = leader.coordinator.log.require_schedule()
    await until(lambda: not schedule.is_running(job), "it ends")
    return await summary(leader, job)


# --- the recipe ----------------------------------------------------------------------


def wheel(folder: Path) -> None:
    """Make a wheel of one module, as no network is needed for."""
    name = "greeting-1.0"
    with zipfile.ZipFile(folder / f"{name}-py3-none-any.whl", "w") as file:
        file.writestr("greeting.py", 'WORD = "hello"\n')
        file.writestr(
            f"{name}.dist-info/METADATA", "Metadata-Version: 2.1\nName: greeting\nVersion: 1.0\n"
        )
        file.writestr(
            f"{name}.dist-info/WHEEL",
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        file.writestr(f"{name}.dist-info/RECORD", "")


@pytest.mark.long
def test_recipe_with_requirements_runs_on_coordinator_and_client(tmp_path: Path) -> None:
    """Both import a package that only the virtual environment has."""
    job = tmp_path / "job"
    (job / "wheels").mkdir(parents=True)
    wheel(job / "wheels")
    (job / "requirements.txt").write_text("greeting==1.0\n")
    (job / "scheduler.py").write_text(
        "import greeting\n"
        "from TaskSprintCoordinator import *\n"
        "class S(TaskSprintCoordinator):\n"
        "    def init(self, seed): self.start_task('work', base=[greeting.WORD], keys=['x'])\n"
        "    def task_done(self, tid, values): self.finish(values=values)\n"
        "S().start()\n"
    )
    (job / "node.py").write_text(
        "import greeting\n"
        "from TaskSprintNode import *\n"
        "class N(TaskSprintNode):\n"
        "    def work(self, word): return {'x': [word, greeting.WORD]}\n"
        "N().start()\n"
    )
    setup = (
        f"{sys.executable} -m venv .venv && "
        ".venv/bin/pip install -q --no-index --find-links wheels -r requirements.txt"
    )
    (job / "tasksprint.json").write_text(json.dumps({"setup": setup, "interpreter": VENV}))
    command = [sys.executable, "-m", "tasksprint", "run", str(job)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=CHECKOUT, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"x": ["hello", "hello"]}
