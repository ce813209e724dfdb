"""Manifests, archives, and what is wrong with them."""

from __future__ import annotations

import hashlib
import json
import os
import random
import stat
from pathlib import Path

import pytest

from tasksprint.errors import UsageError
from tasksprint.process import job_directory
from tasksprint.process.archive import ArchiveLimits, Names, unpack
from tasksprint.process.job_directory import (
    Manifest,
    pack,
    parse_manifest,
    read_job,
)

LIMIT = 1024 * 1024


@pytest.fixture
def job(tmp_path: Path) -> Path:
    directory = tmp_path / "myjob"
    directory.mkdir()
    (directory / "scheduler.py").write_text("scheduler")
    (directory / "node.py").write_text("node")
    return directory


def wrong(directory: Path, manifest: object = None) -> str:
    """Return what a user reads of a job that can't be used."""
    if manifest is not None:
        text = manifest if isinstance(manifest, str) else json.dumps(manifest)
        (directory / "tasksprint.json").write_text(text)
    with pytest.raises(UsageError) as caught:
        read_job(directory)
    return str(caught.value)


# --- manifests ---


def test_job_is_found_by_names(job: Path) -> None:
    assert read_job(job) == Manifest("myjob", ("scheduler.py",), ("node.py",))


def test_everything_can_be_said(job: Path) -> None:
    (job / "map.sh").write_text("")
    text = (
        '{"name":"π","scheduler":["scheduler.py","-v"],"node":"map.sh",'
        '"params":{"n":1180591620717411303424,"x":[1.5,null]},"seed":5,'
        '"interpreter":"python3.12","setup":"make all","retries":0,"timeout_ms":100}'
    )
    manifest = parse_manifest(text, directory=job)
    assert manifest == Manifest(
        "π",
        ("scheduler.py", "-v"),
        ("map.sh",),
        params='{"n": 1180591620717411303424, "x": [1.5, null]}',
        seed=5,
        interpreter="python3.12",
        setup=("/bin/sh", "-c", "make all"),
        retries=0,
        timeout_ms=100,
    )
    assert parse_manifest(manifest.encode(), directory=job) == manifest
    short = read_job(job)
    assert parse_manifest(short.encode(), directory=job) == short


def test_attached_nodes_need_no_program(job: Path) -> None:
    (job / "node.py").unlink()
    (job / "tasksprint.json").write_text('{"node":"attached:gpu"}')
    manifest = read_job(job)
    assert manifest.node == ("attached:gpu",)
    assert manifest.attached == "gpu"
    assert Manifest("x", ("s",), ("n",)).attached is None


def test_sources_and_leftovers_are_no_programs(job: Path) -> None:
    for name in ("node.c", "node.o", "node.py~", "scheduler.md", "node.json", "scheduler"):
        (job / name).write_text("")
    assert read_job(job) == Manifest("myjob", ("scheduler.py",), ("node.py",))


def test_binary_without_a_suffix_is_found(job: Path) -> None:
    (job / "node.py").rename(job / "node")
    (job / "node").chmod(0o755)
    assert read_job(job).node == ("node",)


def test_no_such_job(tmp_path: Path) -> None:
    assert wrong(tmp_path / "x") == (
        f"no job directory '{tmp_path}/x'; a job is a directory with a scheduler.* and a node.*"
    )


def test_job_without_a_node(job: Path) -> None:
    (job / "node.py").unlink()
    assert wrong(job) == (
        f"'{job}' has no node; name a program node.py (or .sh, .awk, or any that is "
        "executable), or say which it is in tasksprint.json"
    )


def test_job_with_two_schedulers(job: Path) -> None:
    (job / "scheduler.sh").write_text("")
    assert wrong(job) == (
        f"'{job}' has 2 schedulers: 'scheduler.py', 'scheduler.sh'; say which in "
        'tasksprint.json, for example {"scheduler": "scheduler.py"}'
    )


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        (
            {"sceduler": "x"},
            "tasksprint.json has an unknown field 'sceduler'; did you mean 'scheduler'?",
        ),
        (
            {"zzz": 1},
            "tasksprint.json has an unknown field 'zzz'; its fields are name, scheduler, node, "
            "params, seed, interpreter, setup, retries, timeout_ms, environment, "
            "check_determinism",
        ),
        (
            {"seed": "5"},
            "tasksprint.json has 'seed': \"5\", expected an integer from 0 to 2**63 - 1",
        ),
        (
            {"seed": 2**63},
            "tasksprint.json has 'seed': 9223372036854775808, "
            "expected an integer from 0 to 2**63 - 1",
        ),
        (
            {"retries": True},
            "tasksprint.json has 'retries': true, expected an integer from 0 to 2**53 - 1",
        ),
        ({"params": [1]}, "tasksprint.json has 'params': [1], expected an object"),
        (
            {"node": []},
            "tasksprint.json has 'node': [], "
            "expected a file name, or a list of a file name and its arguments",
        ),
        (
            {"node": ["node.py", 5]},
            "tasksprint.json has 'node': [\"node.py\", 5], "
            "expected a file name, or a list of a file name and its arguments",
        ),
        (
            {"node": "/bin/sh"},
            "tasksprint.json has 'node': \"/bin/sh\", expected a file inside the job directory",
        ),
        (
            {"scheduler": "../x.py"},
            "tasksprint.json has 'scheduler': \"../x.py\", "
            "expected a file inside the job directory",
        ),
        (
            {"node": "attached:"},
            "tasksprint.json has 'node': \"attached:\", expected 'attached:NAME' and nothing else",
        ),
        (
            {"node": "node.py\0"},
            "tasksprint.json has 'node': \"node.py\\u0000\", expected no NUL characters",
        ),
        (
            "[1]",
            "tasksprint.json holds a list, expected an object such as "
            '{"scheduler": "scheduler.py", "node": "node.py"}',
        ),
        (
            '{"params":{"x":NaN}}',
            "tasksprint.json has the number NaN, which JSON doesn't know",
        ),
        (
            '{"params":{"x":1e999}}',
            "tasksprint.json has the number 1e999, which is too large",
        ),
        (
            {"environment": {"TZ": 1}},
            "tasksprint.json has 'environment' with 'TZ': 1, expected a text",
        ),
        (
            {"environment": {"A=B": ""}},
            "tasksprint.json has 'environment': {\"A=B\": \"\"}, "
            "expected names without '=' and NUL",
        ),
        ('{"seed":1,"seed":2}', "tasksprint.json has 'seed' twice in one object"),
        (
            "{",
            "tasksprint.json isn't JSON: Expecting property name enclosed in double quotes: "
            "line 1 column 2 (char 1)",
        ),
    ],
)
def test_wrong_manifest(job: Path, manifest: object, message: str) -> None:
    assert wrong(job, manifest) == message


def test_manifest_that_names_a_missing_program(job: Path) -> None:
    assert wrong(job, {"node": "nod.py"}) == (
        f"tasksprint.json names the node 'nod.py', which isn't in '{job}'; did you mean 'node.py'?"
    )


def test_program_that_setup_will_make_need_not_be_there(job: Path) -> None:
    (job / "tasksprint.json").write_text('{"node":"build/node","setup":"make"}')
    assert read_job(job).node == ("build/node",)


def test_manifest_that_cannot_be_read(job: Path) -> None:
    (job / "tasksprint.json").write_bytes(b"\xff")
    assert wrong(job).startswith(f"can't read '{job}/tasksprint.json': 'utf-8' codec")


def test_manifest_of_depth_that_no_parser_likes(job: Path) -> None:
    assert wrong(job, "[" * 100_000).startswith("tasksprint.json isn't JSON: ")


# --- archives ---


def test_archive_comes_back_as_it_was(job: Path, tmp_path: Path) -> None:
    (job / "lib").mkdir()
    (job / "lib" / "données").write_bytes(bytes(range(256)))
    (job / "empty").mkdir()
    (job / "node.py").chmod(0o777)
    (job / "link.py").symlink_to("lib/données")
    archive, digest = pack(job, archive_bytes_max=LIMIT)
    assert digest == hashlib.sha256(archive).hexdigest()
    target = unpack(archive, digest, tmp_path / "jobs")
    assert target == tmp_path / "jobs" / digest
    assert sorted(str(path.relative_to(target)) for path in target.rglob("*")) == [
        "empty", "lib", "lib/données", "link.py", "node.py", "scheduler.py",
    ]  # fmt: skip
    assert (target / "link.py").read_bytes() == bytes(range(256))
    assert not (target / "link.py").is_symlink()
    assert stat.S_IMODE((target / "node.py").stat().st_mode) == 0o700
    assert stat.S_IMODE((target / "scheduler.py").stat().st_mode) == 0o600
    assert os.listdir(tmp_path / "jobs") == [digest]
    # Again: nothing happens, not even a look at the archive.
    assert unpack(b"", digest, tmp_path / "jobs") == target


def test_same_files_give_the_same_archive(job: Path, tmp_path: Path) -> None:
    first = pack(job, archive_bytes_max=LIMIT)
    other = tmp_path / "other"
    other.mkdir()
    for name in ("node.py", "scheduler.py"):  # in another order, at another time
        (other / name).write_bytes((job / name).read_bytes())
        os.utime(other / name, (1, 1))
        (other / name).chmod(0o664)
    assert pack(other, archive_bytes_max=LIMIT) == first
    assert first[0][4:8] == bytes(4)  # The time in gzip's own header.


def test_leftovers_of_tools_stay_at_home(job: Path, tmp_path: Path) -> None:
    before = pack(job, archive_bytes_max=LIMIT)
    for name in ("__pycache__", ".git"):
        (job / name).mkdir()
        (job / name / "x").write_text("x")
    (job / "node.pyc").write_text("")
    (job / ".node.py.swp").write_text("")
    assert pack(job, archive_bytes_max=LIMIT) == before


def test_too_large_directory_names_sizes_limit_and_largest_file(job: Path) -> None:
    (job / "data.bin").write_bytes(random.Random(1).randbytes(2 * LIMIT))
    with pytest.raises(UsageError) as caught:
        pack(job, archive_bytes_max=LIMIT)
    assert str(caught.value) == (
        f"the job in '{job}' has 2.0 MiB, which don't pack into 1048576 bytes "
        "(archive_bytes_max); the largest file is 'data.bin' with 2.0 MiB; "
        "keep data out of the job directory: let nodes read it from where it is"
    )


@pytest.mark.parametrize("target", ["/etc/passwd", "../outside", "gone", "lib"])
def test_links_out_of_the_directory_are_refused(job: Path, target: str) -> None:
    (job / "lib").mkdir()
    (job.parent / "outside").write_text("")
    (job / "link").symlink_to(target)
    with pytest.raises(UsageError) as caught:
        pack(job, archive_bytes_max=LIMIT)
    assert str(caught.value) == (
        f"'link' in '{job}' is a link to '{target}', which is no file inside the job "
        "directory; put a copy there instead, or move it out"
    )


def test_pipes_and_sockets_are_refused(job: Path) -> None:
    os.mkfifo(job / "pipe")
    with pytest.raises(UsageError) as caught:
        pack(job, archive_bytes_max=LIMIT)
    assert str(caught.value) == (
        f"'pipe' in '{job}' is neither a file nor a directory; move it out of the job directory"
    )


def test_file_name_that_is_not_utf_8(job: Path) -> None:
    try:
        (job / os.fsdecode(b"n\xff")).write_text("")
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    with pytest.raises(UsageError, match="isn't UTF-8"):
        pack(job, archive_bytes_max=LIMIT)


def test_more_files_than_any_machine_would_unpack(
    job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = ArchiveLimits(files_max=3)
    monkeypatch.setattr(job_directory, "Names", lambda: Names(few))
    (job / "data").mkdir()
    pack(job, archive_bytes_max=LIMIT)
    (job / "data" / "0").write_text("")
    with pytest.raises(UsageError) as caught:
        pack(job, archive_bytes_max=LIMIT)
    assert str(caught.value) == (
        f"can't pack '{job}': the archive has more than 3 files and directories; "
        "keep data out of the job directory: let nodes read it from where it is"
    )


def test_job_that_would_unpack_to_too_much(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would pack well: it is all zeros."""
    monkeypatch.setattr(job_directory, "LIMITS", ArchiveLimits(unpacked_bytes_max=2_000_000))
    with (job / "zeros").open("wb") as file:
        file.truncate(2_000_000)
    with pytest.raises(UsageError) as caught:
        pack(job, archive_bytes_max=LIMIT)
    assert str(caught.value) == (
        f"the job in '{job}' has 1.9 MiB, more than 2000000 bytes, which no job may unpack to; "
        "the largest file is 'zeros' with 1.9 MiB; "
        "keep data out of the job directory: let nodes read it from where it is"
    )


def test_names_that_differ_only_in_case(job: Path) -> None:
    (job / "Node.py").write_text("")
    if len(os.listdir(job)) == 2:
        pytest.skip("this file system doesn't tell them apart")
    with pytest.raises(UsageError, match=r"'Node.py' and 'node.py' differ only in upper and"):
        pack(job, archive_bytes_max=LIMIT)


def test_file_of_a_job_is_named_instead_of_its_directory(job: Path) -> None:
    with pytest.raises(UsageError) as caught:
        read_job(job / "scheduler.py")
    assert str(caught.value) == (
        f"'{job}/scheduler.py' is a file, expected the job's directory; "
        f"name its directory: '{job}'"
    )
