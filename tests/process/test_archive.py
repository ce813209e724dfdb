"""Archives from anybody: what common tar programs write is read, anything else is refused."""

from __future__ import annotations

import gzip
import hashlib
import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from tasksprint.errors import RemoteProtocolError
from tasksprint.process.archive import KEEP_DATA_OUT, LIMITS, ArchiveLimits, check_archive, unpack
from tasksprint.process.job_directory import pack
from tests.archives import END, header, member, packed, pax, zipped

LIMIT = 1024 * 1024


def refused(archive: bytes, tmp_path: Path, limits: ArchiveLimits = LIMITS) -> str:
    """Return why an archive is refused, and see that nothing is left of it."""
    root = tmp_path / "refused"
    with pytest.raises(RemoteProtocolError) as checked:
        check_archive(archive, limits)
    with pytest.raises(RemoteProtocolError) as unpacked:
        unpack(archive, hashlib.sha256(archive).hexdigest(), root, limits)
    assert str(checked.value) == str(unpacked.value)
    assert os.listdir(root) == []
    return str(checked.value)


def unpacked(archive: bytes, tmp_path: Path) -> list[str]:
    check_archive(archive)
    target = unpack(archive, hashlib.sha256(archive).hexdigest(), tmp_path / "jobs")
    return sorted(str(path.relative_to(target)) for path in target.rglob("*"))


# --- what others' tar programs write ---


@pytest.mark.parametrize("form", ["gnu", "pax", "ustar", "oldgnu"])
def test_archives_of_the_tar_program_are_read(form: str, tmp_path: Path) -> None:
    if shutil.which("tar") is None:
        pytest.skip("no tar here")
    job = tmp_path / "job"
    # Too long for the field of a name; and, where the format can, for any field.
    deep = "/".join(["d" * 45] * (3 if form == "ustar" else 6))
    (job / deep).mkdir(parents=True)
    (job / deep / "données").write_bytes(b"x" * 1_000_000)
    (job / "scheduler.py").write_text("")
    (job / "scheduler.py").chmod(0o755)
    command = ["tar", "-c", "-z", "-f", "-", f"--format={form}", "-C", str(job), "."]
    done = subprocess.run(command, capture_output=True)
    if done.returncode:
        pytest.skip(f"this tar writes no {form}")
    names = unpacked(done.stdout, tmp_path)
    assert names[-1] == "scheduler.py"
    assert names[-2] == f"{deep}/données"
    (target,) = (tmp_path / "jobs").iterdir()
    assert (target / names[-2]).read_bytes() == b"x" * 1_000_000
    assert os.access(target / "scheduler.py", os.X_OK)


def test_header_for_all_members_such_as_git_writes(tmp_path: Path) -> None:
    commit = pax(("comment", "541298d"), kind=b"g")
    assert unpacked(zipped(commit, member("a"), END), tmp_path) == ["a"]
    path = pax(("path", "b"), kind=b"g")
    assert refused(zipped(path, member("a"), END), tmp_path) == (
        "the archive is damaged: one 'path' for all members"
    )
    assert refused(zipped(member("a"), commit, END), tmp_path) == (
        "the archive is damaged: an extended header of type 'g' where none belongs"
    )


def test_directories_named_once_or_only_by_their_files(tmp_path: Path) -> None:
    parts = [member("./", kind=b"5"), member("./a/b/c"), member("a/b/", kind=b"5"), END]
    assert unpacked(zipped(*parts), tmp_path) == ["a", "a/b", "a/b/c"]


# --- names ---


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/etc/evil", "..", "a/.."])
def test_names_that_lead_out_are_refused(name: str, tmp_path: Path) -> None:
    expected = f"archive member {name!r} would leave the job directory"
    assert refused(zipped(member(name), END), tmp_path) == expected
    long = pax(("path", name))
    assert refused(zipped(long, member("a"), END), tmp_path) == expected
    gnu = member("././@LongLink", name.encode() + b"\0", b"L")
    assert refused(zipped(gnu, member("a"), END), tmp_path) == expected
    if name != "a/..":
        assert refused(zipped(member(name, kind=b"5"), END), tmp_path) == expected


@pytest.mark.parametrize("name", ["a//b", "a/./b", "././a", "a/", "./", "."])
def test_names_that_are_not_plain_are_refused(name: str, tmp_path: Path) -> None:
    shown = name.removeprefix("./") or name
    assert refused(zipped(member(name), END), tmp_path) == (
        f"archive member {shown!r} is no plain path, expected one such as 'lib/a.py'"
    )


def test_names_without_an_end(tmp_path: Path) -> None:
    limits = ArchiveLimits(name_bytes_max=600, depth_max=5, names_bytes_max=1_000)
    long = zipped(pax(("path", "x" * 256)), member("a"), END)
    assert refused(long, tmp_path) == (
        f"archive member {'x' * 100!r} … {'x' * 50!r} has a part of 256 bytes in its name, "
        "at most 255"
    )
    longer = zipped(pax(("path", "é" * 301)), member("a"), END)
    assert refused(longer, tmp_path, limits).endswith(" has a name of 602 bytes, at most 600")
    deep = zipped(member("a/b/c/d/e/f"), END)
    assert refused(deep, tmp_path, limits) == (
        "archive member 'a/b/c/d/e/f' lies 6 directories deep, at most 5"
    )
    many = [member(f"{number}{'y' * 90}") for number in range(20)]
    assert refused(zipped(*many, END), tmp_path, limits) == (
        f"the names in the archive have more than 1000 bytes; {KEEP_DATA_OUT}"
    )


def test_names_that_are_no_text(tmp_path: Path) -> None:
    latin = zipped(header("n", fields={0: b"n\xe9"}), END)
    assert refused(latin, tmp_path) == "archive member b'n\\xe9' has a name that isn't UTF-8"
    zero = zipped(pax(("path", "a\0b")), member("a"), END)
    assert refused(zero, tmp_path) == "the archive is damaged: a name with a NUL in it"
    none = zipped(header("x", fields={0: b"\0"}), END)
    assert refused(none, tmp_path) == "the archive is damaged: a member without a name"


@pytest.mark.parametrize(
    ("members", "twice"),
    [
        ([member("x"), member("x")], "x"),
        ([member("x"), member("x/y")], "x"),
        ([member("x/y"), member("x")], "x"),
        ([member("x", kind=b"5"), member("x", kind=b"5")], "x"),
        ([member("x", kind=b"5"), member("x")], "x"),
        ([member("x"), member("x", kind=b"5")], "x"),
    ],
)
def test_member_that_stands_there_twice_is_refused(
    members: list[bytes], twice: str, tmp_path: Path
) -> None:
    assert refused(zipped(*members, END), tmp_path) == (
        f"archive member {twice!r} stands in the archive twice"
    )


def test_names_that_some_machines_take_for_the_same(tmp_path: Path) -> None:
    parts = [member("lib/a.py"), member("Lib/b.py"), END]
    assert refused(zipped(*parts), tmp_path) == (
        "archive members 'lib' and 'Lib' differ only in upper and lower case, "
        "which some machines don't tell apart"
    )


# --- what is no file ---


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        (b"1", "a link"),
        (b"2", "a symbolic link"),
        (b"3", "a device"),
        (b"4", "a device"),
        (b"6", "a pipe"),
        (b"7", "of type '7'"),
        (b"S", "a sparse file"),
        (b"K", "a link with a long name"),
        (b"V", "of type 'V'"),
        (b"\xff", "of type 'ÿ'"),
    ],
)
def test_members_that_are_no_files_are_refused(kind: bytes, what: str, tmp_path: Path) -> None:
    assert refused(zipped(member("x", kind=kind), END), tmp_path) == (
        f"archive member 'x' is {what}, expected a file or a directory"
    )


def test_sparse_file_of_pax_is_refused(tmp_path: Path) -> None:
    head = pax(("GNU.sparse.major", "1"), ("GNU.sparse.realsize", "9" * 12))
    assert refused(zipped(head, member("x"), END), tmp_path) == (
        "the archive has a sparse file, expected plain ones; pack it without --sparse"
    )


def test_directory_with_bytes(tmp_path: Path) -> None:
    assert refused(zipped(member("x", b"data", b"5"), END), tmp_path) == (
        "the archive is damaged: the directory 'x' has 4 bytes"
    )


# --- amounts ---


def test_archive_that_unpacks_to_too_much_is_refused(tmp_path: Path) -> None:
    limits = ArchiveLimits(unpacked_bytes_max=1_000_000)
    too_much = "the archive unpacks to more than 1000000 bytes"
    assert refused(zipped(member("zeros", bytes(1_000_000)), END), tmp_path, limits) == too_much
    # Only said to have so much; refused before any of it is unzipped.
    assert refused(zipped(header("x", size=7 << 30)), tmp_path, limits) == too_much
    # And in what is no file: behind the end, or in small headers.
    assert refused(zipped(member("x"), END, bytes(1_000_000)), tmp_path, limits) == too_much


def test_archive_with_too_many_members_is_refused(tmp_path: Path) -> None:
    limits = ArchiveLimits(files_max=4)
    too_many = f"the archive has more than 4 files and directories; {KEEP_DATA_OUT}"
    files = [member(str(number)) for number in range(5)]
    check_archive(zipped(*files[:4], END), limits)
    assert refused(zipped(*files, END), tmp_path, limits) == too_many
    # Directories that only a name mentions are made, too.
    assert refused(zipped(member("a/b/c/d/e"), END), tmp_path, limits) == too_many
    # And the directory itself needn't be named a million times.
    own = [member("./", kind=b"5") for _ in range(5)]
    assert refused(zipped(*own, END), tmp_path, limits) == too_many


def test_extended_headers_have_limits(tmp_path: Path) -> None:
    long = zipped(pax(("comment", "1" * 70_000)), member("x"), END)
    assert refused(long, tmp_path) == (
        "the archive has an extended header of 70015 bytes, at most 65536"
    )
    many = zipped(pax(*[("a", "")] * 33), member("x"), END)
    assert refused(many, tmp_path) == (
        "the archive has an extended header of more than 32 records"
    )
    limits = ArchiveLimits(headers_bytes_max=1_000)
    often = [pax(("a", "b" * 400)) + member(str(number)) for number in range(3)]
    assert refused(zipped(*often, END), tmp_path, limits) == (
        "the archive has more than 1000 bytes of extended headers"
    )
    chain = zipped(pax(("a", "b")), pax(("a", "b")), member("x"), END)
    assert refused(chain, tmp_path) == (
        "the archive is damaged: an extended header of type 'x' where none belongs"
    )


@pytest.mark.parametrize(
    "content",
    [b"1", b"1" * 1_000, b"9999999 a=b\n", b"4 =\n", b"3 \n", b"0 a=b\n", b"6 a=bc", b"-6 a=b\n"],
)
def test_extended_headers_that_are_not_made_of_records(content: bytes, tmp_path: Path) -> None:
    archive = zipped(member("PaxHeaders/x", content, b"x"), member("x"), END)
    assert refused(archive, tmp_path) == (
        "the archive is damaged: an extended header isn't made of records"
    )


def test_numbers_that_are_no_octal_digits(tmp_path: Path) -> None:
    size = zipped(header("x", fields={124: b"\x80" + b"\xff" * 11}), END)
    assert refused(size, tmp_path).startswith("the archive is damaged: the size of a member is")
    mode = zipped(header("x", fields={100: b"0o777\0"}), END)
    assert refused(mode, tmp_path) == (
        "the archive is damaged: the mode of a member is b'0o777', expected octal digits"
    )
    pax_size = zipped(pax(("size", "8589934592")), member("x"), END)
    assert refused(pax_size, tmp_path) == "the archive has a file of more than 8 GiB"


# --- damage ---


@pytest.mark.parametrize(
    ("archive", "why"),
    [
        (b"", "its gzip stream ends too early"),
        (packed()[:-1], "its gzip stream ends too early"),
        (packed() + b"more", "4 bytes follow the end of its gzip stream"),
        (packed() + packed(), f"{len(packed())} bytes follow the end of its gzip stream"),
        (zipped(member("x")), "it ends in the middle of a member"),
        (zipped(member("x"), bytes(512)), "it ends in the middle of a member"),
        (zipped(header("x", size=5)), "it ends in the middle of a member"),
        (zipped(member("x"), bytes(512), member("y"), END), "a member follows its end"),
        (zipped(member("x"), END, b"more"), "something follows the end of its tar"),
        (zipped(pax(("a", "b")), END), "it ends behind the extended header of a member"),
        (zipped(b"nonsense" * 64), "no tar header where a member should begin"),
        (zipped(header("x")[:150] + b"1" + header("x")[151:]), "a tar header fails its checksum"),
    ],
)
def test_archive_that_is_not_whole(archive: bytes, why: str, tmp_path: Path) -> None:
    assert refused(archive, tmp_path) == f"the archive is damaged: {why}"


def test_archive_that_is_no_gzip(tmp_path: Path) -> None:
    assert refused(gzip.decompress(packed()), tmp_path).startswith(
        "the archive is damaged: it can't be unzipped: Error -3"
    )
    wrong = bytearray(packed())
    wrong[-8] ^= 1
    assert "incorrect data check" in refused(bytes(wrong), tmp_path)


def test_damaged_archives_give_one_kind_of_error(tmp_path: Path) -> None:
    chance = random.Random(1)
    archive = zipped(*[member(f"lib/{number}", bytes(99)) for number in range(9)], END)
    refusals = 0
    for number in range(200):
        copy = bytearray(archive)
        copy[chance.randrange(10, len(copy))] ^= 1 << chance.randrange(8)
        cut = len(copy) if number % 2 else chance.randrange(len(copy))
        try:
            check_archive(bytes(copy[:cut]))
        except RemoteProtocolError as error:
            refusals += 1
            assert "archive" in str(error)
    assert refusals > 190


# --- unpacking ---


def test_other_archive_than_was_named_is_refused(tmp_path: Path) -> None:
    archive = packed()
    digest, found = (hashlib.sha256(each).hexdigest() for each in (archive, archive + b"x"))
    with pytest.raises(RemoteProtocolError) as caught:
        unpack(archive + b"x", digest, tmp_path / "jobs")
    assert str(caught.value) == (
        f"the archive of {len(archive) + 1} bytes has SHA-256 {found}, expected {digest}"
    )


def test_second_process_that_unpacks_the_same_finds_it_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = packed()
    digest = hashlib.sha256(archive).hexdigest()
    root = tmp_path / "jobs"
    rename = os.rename

    def rename_late(source: Path, target: Path) -> None:
        monkeypatch.setattr(os, "rename", rename)
        unpack(archive, digest, root)  # The other one is faster.
        rename(source, target)

    monkeypatch.setattr(os, "rename", rename_late)
    assert unpack(archive, digest, root) == root / digest
    assert os.listdir(root) == [digest]


def test_many_files_are_synced_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sync for each of 100,000 files took longer than a scheduler may take to start."""
    synced: list[object] = []
    monkeypatch.setattr(os, "sync", lambda: synced.append("all"))
    monkeypatch.setattr(os, "fsync", synced.append)
    unpacked(zipped(*[member(f"lib/{number}") for number in range(100)], END), tmp_path)
    assert "all" in synced
    assert len(synced) < 5


def test_job_directory_of_many_shapes_comes_back(tmp_path: Path) -> None:
    job = tmp_path / "job"
    names = ["é" * 120 + "/" + "x" * 90 + "/y", "a" * 99, "a/" * 60 + "b", "new\nline", "sp ace"]
    for name in names:
        (job / name).parent.mkdir(parents=True, exist_ok=True)
        (job / name).write_text(name)
    archive, _ = pack(job, archive_bytes_max=LIMIT)
    assert set(names) <= set(unpacked(archive, tmp_path))
