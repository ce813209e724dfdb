"""What enemies pack: tars with anything in their headers, cut, spoiled, or of gigabytes.

Made up from members, right and wrong; then spoiled as tar, checksums made right again or
not; then as gzip. Checked of each archive: it is read, or refused with one sentence and no
other error, in a time in proportion to its bytes and within `PEAK_MIB_MAX` of memory; reading
and unpacking agree, what is refused leaves nothing behind; and what is unpacked lies inside
and is what Python's own reader finds in it.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tarfile
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random

from tasksprint.errors import RemoteProtocolError
from tasksprint.process.archive import ArchiveLimits, check_archive, unpack
from tests.archives import BLOCK, END, header, member, pax
from tests.fuzz.outcome import Outcome, input_random, own_peak_mib

__all__ = ["NAME", "archive", "run", "what_is_wrong"]

NAME = "archives"

MIB = 1024 * 1024
# Small, so that inputs often reach them; what is unzipped takes time in proportion.
_LIMITS = ArchiveLimits(files_max=200, unpacked_bytes_max=32 * MIB, names_bytes_max=20_000)
_SECONDS_MAX = 2.0
_SENTENCE_MAX = 1_200
# Of a hundred inputs, so many unzip to far more than their size.
_BOMBS = 1

_NAMES = (
    *("a", "lib/a.py", "lib", "b" * 99, "x/" * 40 + "y", "é", "n\nl", "\\", "C:\\x", "con", "A"),
    *("../up", "/etc/x", ".", "..", "", "a/", "a//b", "./a", "./", "a/./b", "-rf", "~", "$(id)"),
    *("x/" * 70 + "y", "z" * 300, "\x1b[2J", "lib/../a", "LIB/a.py", "a\0b", " ", "\u202e"),
)
_KINDS = b"05\x000505051234567LKSxgVDMNA\xff"
_KEYS = (
    *("path", "size", "linkpath", "comment", "mtime", "uid", "hdrcharset", "GNU.sparse.major"),
    *("GNU.sparse.map", "SCHILY.xattr.user.x", "LIBARCHIVE.xattr.x", "", "=", " ", "path "),
)
_VALUES = ("", "0", "1", "9" * 20, "9" * 5_000, "-1", "1.5", "BINARY", "0,1,2", "\n", "x" * 3_000)


def run(seconds: float, seed: int) -> Outcome:
    """Read made-up archives for so long."""
    findings: list[str] = []
    number = 0
    # In memory, where there is such a place: each file is synced.
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="ts-fuzz-", dir=memory) as name:
        folder = Path(name)
        ends_s = time.monotonic() + seconds
        while time.monotonic() < ends_s:
            number += 1
            wrong = what_is_wrong(archive(input_random(seed, number)), folder)
            if wrong is not None:
                findings.append(f"input {number}: {wrong}")
    return Outcome(NAME, number, findings, own_peak_mib())


def what_is_wrong(data: bytes, folder: Path) -> str | None:
    """Read and unpack an archive; return what is wrong with how that went, or None."""
    digest = hashlib.sha256(data).hexdigest()
    before_s = time.process_time()
    read = _refusal(lambda: check_archive(data, _LIMITS))
    unpacked = _refusal(lambda: unpack(data, digest, folder, _LIMITS))
    took_s = time.process_time() - before_s
    try:
        if took_s > _SECONDS_MAX:
            return f"{took_s:.1f} s of processor time for {len(data)} bytes"
        if read != unpacked:
            return f"reading says {read!r}, unpacking {unpacked!r}"
        if read is not None:
            if not (read.isprintable() and "archive" in read and len(read) <= _SENTENCE_MAX):
                return f"{read!r} isn't one sentence"
            left = os.listdir(folder)
            return f"{left} is left behind" if left else None
        return _difference(data, folder / digest)
    finally:
        shutil.rmtree(folder / digest, ignore_errors=True)


def _refusal(work: Callable[[], object]) -> str | None:
    """Return the sentence that something is refused with; None: it isn't."""
    try:
        work()
    except RemoteProtocolError as error:
        return str(error)
    except Exception as error:
        return f"another error: {error!r}"
    return None


def _difference(data: bytes, target: Path) -> str | None:
    """Compare what was unpacked with what Python's reader finds."""
    try:
        expected = _read_by_python(data)
    except (tarfile.TarError, ValueError):
        return None  # It reads owners and times, too, which nobody here wants to know.
    found: dict[str, bytes | None] = {}
    for path in target.rglob("*"):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            return f"{str(path)!r} was made"
        name = str(path.relative_to(target))
        found[name] = path.read_bytes() if path.is_file() else None
    # (It ends without a word at a header that it can't read.)
    if any(found.get(name, b"none") != content for name, content in expected.items()):
        return f"unpacked {sorted(found)}, Python's reader finds {sorted(expected)}"
    return None


def _read_by_python(data: bytes) -> dict[str, bytes | None]:
    result: dict[str, bytes | None] = {}
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as tar:
        for each in tar:
            name = each.name.rstrip("/").removeprefix("./")
            path = each.pax_headers.get("path")
            if path is not None and (each.isdir() or path.rstrip("/") != each.name.rstrip("/")):
                # Named twice: the pax header counts, as it does for GNU tar. For this reader a
                # long name of GNU's counts, and the slash that once said "directory".
                raise ValueError(f"{each.name!r} is also named {path!r}")
            if name in ("", "."):
                continue
            file = None if each.isdir() else tar.extractfile(each)
            result[name] = None if file is None else file.read()
            while "/" in name:
                name = name.rpartition("/")[0]
                result.setdefault(name, None)
    return result


# --- making them up ------------------------------------------------------------------


def archive(random: Random) -> bytes:
    """Make up one archive."""
    if random.randrange(100) < _BOMBS:
        return _bomb(random)
    parts = [_member(random) for _ in range(random.choice((0, 1, 1, 2, 3, 5, 20)))]
    if random.randrange(20) == 0:
        parts += [member(f"many/{number}") for number in range(random.choice((150, 250)))]
    tar = bytearray(b"".join(parts))
    if random.randrange(4) == 0:
        _spoil(random, tar)
    tar += random.choice((END, END, END, END, b"", bytes(BLOCK), END + bytes(BLOCK * 18)))
    if random.randrange(20) == 0:
        tar += random.choice((b"garbage", header("late"), bytes(100_000), random.randbytes(600)))
    packed = bytearray(zlib_gzip(bytes(tar)))
    match random.randrange(20):
        case 0:
            packed[random.randrange(len(packed))] ^= 1 << random.randrange(8)
        case 1:
            del packed[random.randrange(len(packed)) :]
        case 2:
            packed += random.choice((b"\0", b"garbage", zlib_gzip(bytes(tar)), bytes(5_000)))
        case 3:
            packed[:] = random.choice((b"", bytes(tar), random.randbytes(200)))
        case _:
            pass
    return bytes(packed)


def zlib_gzip(data: bytes) -> bytes:
    """Return the gzip of some bytes."""
    packer = zlib.compressobj(1, wbits=16 + zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


def _member(random: Random) -> bytes:
    is_plain = random.randrange(3) > 0
    name = f"f{random.randrange(1_000)}" if is_plain else random.choice(_NAMES)
    kind = b"0" if is_plain else bytes([random.choice(_KINDS)])
    content = random.randbytes(random.choice((0, 0, 1, 511, 512, 513, 3_000)))
    before = b""
    match random.randrange(12):
        case 0:
            before = pax(("path", random.choice(_NAMES)))
        case 1:
            before = _extended(random)
        case 2:
            long = random.choice(_NAMES).encode() + random.choice((b"\0", b"", b"\0x"))
            before = member("././@LongLink", long, random.choice((b"L", b"L", b"K")))
        case 3:
            before = _extended(random) + _extended(random)
        case _:
            pass
    fields: dict[int, bytes] = {}
    if random.randrange(6) == 0:
        at = random.choice((100, 108, 116, 124, 136, 148, 257, 263, 265, 345))
        fields[at] = random.choice(
            (b"\x80" + b"\xff" * 7, b"-0000001", b" 777\0", b"ustar  \0", b"9" * 8, bytes(8))
        )
    if kind == b"5":
        content = b""
    name = name.replace("\0", "").encode()[:100].decode(errors="ignore") or "x"
    head = header(name, kind, len(content), fields=fields)
    return before + head + content + bytes(-len(content) % BLOCK)


def _extended(random: Random) -> bytes:
    kind = random.choice((b"x", b"x", b"x", b"g"))
    if random.randrange(3):
        count = random.choice((0, 1, 2, 5, 40))
        pairs = [(random.choice(_KEYS), random.choice(_VALUES)) for _ in range(count)]
        return pax(*pairs, kind=kind)
    content = random.choice(
        (b"1" * 60_000, b"1" * 70_000, b"99999999 a=b\n", b"\xff" * 40, b"5 a=\n" * 30, b"0 =\n")
    )
    return member("PaxHeaders/x", content, kind)


def _spoil(random: Random, tar: bytearray) -> None:
    """Change some bytes; mostly in headers, with checksums made right again."""
    if not tar:
        return
    for _ in range(random.choice((1, 1, 2, 8))):
        at = random.randrange(len(tar))
        if random.randrange(2):
            at = at // BLOCK * BLOCK + random.choice((0, 100, 124, 130, 156, 257, 345))
        if at < len(tar):
            tar[at] = random.choice((0, 32, 47, 48, 55, 128, 255, random.randrange(256)))
    if random.randrange(3):
        for start in range(0, len(tar) - BLOCK + 1, BLOCK):
            block = tar[start : start + BLOCK]
            if block[257:262] == b"ustar":
                block[148:156] = b" " * 8
                tar[start + 148 : start + 156] = b"%06o\0 " % sum(block)


def _bomb(random: Random) -> bytes:
    """Pack hundreds of MiB, or say so."""
    packer = zlib.compressobj(9, wbits=16 + zlib.MAX_WBITS)
    size = random.choice((10 * MIB, 40 * MIB, 2 << 30, 7 << 30))
    head = header("x", random.choice((b"0", b"x", b"L", b"g", b"5")), size)
    result = [packer.compress(head)]
    piece = random.choice((bytes(MIB), member("x") * 1_000, b"1" * MIB))
    result += [packer.compress(piece) for _ in range(random.choice((5, 40, 100)))]
    return b"".join([*result, packer.flush()])
