"""The cluster key: its file, and the proofs made with it.

Every request between processes carries

    Authorization: TaskSprint life=<16 hex>,nonce=<32 hex>,body=<…>,mac=<64 hex>

where `mac` is HMAC-SHA256 with the key over these lines, each ended by a newline
but for the last:

    tasksprint-request
    <method> <path with query> <Host header>
    <life> <nonce>
    <body: its SHA-256 in hex, nothing for none, or "stream" for one sent as a stream>

The Host, with its port, is covered: a request to one process can't be handed to another. The
*life* is random for each start of a server: a request can't be sent again to a later start. The
nonce's first half names the sender (random at its start), and its second half counts up. So a
server remembers one number and a window for each sender, not one entry for each request. No
clock has a part in it.

Every answer to such a request is proved as well; proofs.py says how.

The mac proves that a holder of the key wrote the request, and that nobody changed it. It hides
nothing: bodies are readable on the wire.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from tasksprint.durable_files import sync_directory
from tasksprint.errors import SettingsError
from tasksprint.net.addresses import cause_of

__all__ = [
    "NO_BODY",
    "UNKNOWN_LIFE",
    "ClusterKey",
    "Mac",
    "Signature",
    "authorization_of",
    "create_key",
    "find_key_file",
    "load_key",
    "new_life",
    "open_key",
]

# Stand in a signature in place of a body's digest:
NO_BODY = ""
# Sent to a server with an unknown life. No server has this one, so each answers with its own.
UNKNOWN_LIFE = "0" * 16

# A bigger body isn't sent to a server with an unknown life: it would have to go twice.
_LIFE_FIRST_BYTES = 64 * 1024

KEY_BYTES = 32
_KEY_PATTERN = re.compile(rb"([0-9a-fA-F]{64})\s*\Z")
_BLOCK_BYTES = 64  # of SHA-256
# Addresses whose life is remembered. Forgetting one costs a round trip.
_LIVES_MAX = 4_096


class Mac:
    """HMAC-SHA256 (RFC 2104) with one secret.

    Made from copies of two hashes that have the secret in them already: half the cost
    of `hmac.digest`, and this is paid for every request and every frame.
    """

    __slots__ = ("_inner", "_outer")

    def __init__(self, secret: bytes) -> None:
        assert len(secret) == KEY_BYTES
        block = secret.ljust(_BLOCK_BYTES, b"\0")
        self._inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in block))
        self._outer = hashlib.sha256(bytes(byte ^ 0x5C for byte in block))

    def digest(self, *parts: bytes | memoryview) -> bytes:
        """Return the 32 bytes for the parts, taken as one message."""
        inner = self._inner.copy()
        for part in parts:
            inner.update(part)
        outer = self._outer.copy()
        outer.update(inner.digest())
        return outer.digest()


class Signature(NamedTuple):
    """The proof of one request."""

    authorization: str  # the header
    mac: str  # its last part, by which answers name the request
    life: str  # of the server, for which it was signed


class ClusterKey:
    """The secret that every process of a cluster knows; it never travels.

    For signing it also knows its own name as a sender, how many requests it has signed, and the
    lives of the servers that it asks.

    Raises:
        SettingsError: The secret hasn't 32 bytes.
    """

    __slots__ = ("_counter", "_digest", "_lives", "_sender")

    def __init__(self, secret: bytes) -> None:
        if len(secret) != KEY_BYTES:
            raise SettingsError(f"the cluster key has {len(secret)} bytes, expected {KEY_BYTES}")
        self._digest = Mac(secret).digest
        self._sender = os.urandom(8).hex()
        self._counter = itertools.count(1)
        self._lives: dict[str, str] = {}  # of the server at each address, as it told

    def __repr__(self) -> str:
        return "ClusterKey(…)"  # Never the secret: it would end in a log.

    @property
    def fingerprint(self) -> str:
        """Digits by which this key is known again; they tell nothing of it."""
        return self._digest(b"tasksprint-fingerprint").hex()[:16]

    def request_mac(
        self, method: str, target: str, host: str, *, life: str, nonce: str, body: str
    ) -> str:
        """Return the hex digits that prove a request (see the module's docstring)."""
        what = f"tasksprint-request\n{method} {target} {host}\n{life} {nonce}\n{body}"
        return self._digest(what.encode()).hex()

    def sign(self, method: str, target: str, address: str, *, body: str = NO_BODY) -> Signature:
        """Return the proof of a request that is sent now.

        Sign at the last moment: if thousands of this process's later requests overtake it, it
        counts as a repetition.

        Args:
            address: As the Host header has it.
            body: The SHA-256 of the body in hex, or `NO_BODY`.
        """
        life = self._lives.get(address, UNKNOWN_LIFE)
        nonce = f"{self._sender}{next(self._counter):016x}"
        mac = self.request_mac(method, target, address, life=life, nonce=nonce, body=body)
        return Signature(authorization_of(life, nonce, body, mac), mac, life)

    def knows_life(self, address: str) -> bool:
        """Whether the server at an address has told its life."""
        return address in self._lives

    def needs_life(self, address: str, body_bytes: int) -> bool:
        """Whether to ask for a server's life before a body of this size is sent to it."""
        return body_bytes > _LIFE_FIRST_BYTES and not self.knows_life(address)

    def learn_life(self, address: str, life: str, *, signed_for: str) -> None:
        """Take the life of the server at an address, as a proven refusal told it.

        Args:
            signed_for: The life for which the refused request was signed.
        """
        if life == signed_for:
            # It wasn't the life that was wrong, then, but the number: somebody else signs as
            # this sender. A process that was copied with its memory, as virtual machines are.
            self._sender = os.urandom(8).hex()
        elif len(self._lives) >= _LIVES_MAX:
            self._lives.clear()
        self._lives[address] = life

    def answer_mac(
        self, request_mac: str, kind: str, status: int, lines: bytes, covered: bytes | memoryview
    ) -> str:
        """Return the hex digits that prove an answer (see proofs.py)."""
        start = f"tasksprint-answer\n{request_mac} {kind} {status}\n".encode()
        return self._digest(start, lines, b"\r\n", covered).hex()

    def frame_mac(self, answer_mac: str, number: int, data: bytes | memoryview) -> bytes:
        """Return the proof of one piece of an answer that streams (see proofs.py)."""
        return self._digest(f"tasksprint-frame\n{answer_mac} {number}\n".encode(), data)

    def token_mac(self, scope: str, expiry_s: int) -> str:
        """Return the hex digits that prove a token (see `tokens`)."""
        return self._digest(f"tasksprint-token\n{scope}\n{expiry_s}".encode()).hex()

    def derive(self, purpose: str) -> Mac:
        """Return a MAC for one purpose, such as one connection between replicas."""
        return Mac(self._digest(f"tasksprint-derive\n{purpose}".encode()))


def authorization_of(life: str, nonce: str, body: str, mac: str) -> str:
    """Return the Authorization of a request (see the module's docstring)."""
    return f"TaskSprint life={life},nonce={nonce},body={body},mac={mac}"


def new_life() -> str:
    """Return a name for one start of one server."""
    return os.urandom(8).hex()


def find_key_file(
    explicit: str | None, *, state_dir: Path, environ: Mapping[str, str] | None = None
) -> tuple[Path, bool]:
    """Return where the cluster key is to be found, and whether that is the default place.

    Args:
        explicit: The value of `--key-file`, which comes first; `TASKSPRINT_KEY_FILE`
            comes second, `<state_dir>/key` last.
        state_dir: TaskSprint's own directory for state, such as ~/.local/state/tasksprint.
    """
    named = explicit or (os.environ if environ is None else environ).get("TASKSPRINT_KEY_FILE")
    if named:
        return Path(named).expanduser(), False
    return state_dir / "key", True


def open_key(
    explicit: str | None,
    *,
    state_dir: Path,
    may_create: bool,
    environ: Mapping[str, str] | None = None,
) -> ClusterKey:
    """Return the cluster key, making it at its default place if it may and must.

    Raises:
        SettingsError: There is none, or its file can't be used.
    """
    path, is_default = find_key_file(explicit, state_dir=state_dir, environ=environ)
    if is_default and may_create:
        return create_key(path)
    return load_key(path)


def load_key(path: Path) -> ClusterKey:
    """Return the key in a file.

    Raises:
        SettingsError: The file isn't there, can't be read, can be read by others, or
            doesn't hold a key.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode):
                raise SettingsError(f"key file {str(path)!r} is not a regular file")
            if mode & 0o077:
                raise SettingsError(
                    f"key file {str(path)!r} can be read by others: its mode is "
                    f"{stat.S_IMODE(mode):04o}, expected 0600",
                    hint=f"run: chmod 600 {path}",
                )
            content = file.read(1024)
    except FileNotFoundError:
        raise SettingsError(
            f"there is no cluster key at {str(path)!r}",
            hint="start a coordinator, which makes one, or copy the key file of the cluster "
            "here, mode 0600, and name it with --key-file or TASKSPRINT_KEY_FILE",
        ) from None
    except OSError as error:
        raise SettingsError(f"cannot read key file {str(path)!r}: {cause_of(error)}") from error
    match = _KEY_PATTERN.match(content)
    if match is None:
        raise SettingsError(
            f"key file {str(path)!r} is malformed: expected {2 * KEY_BYTES} hexadecimal digits, "
            f"found {len(content.strip())} bytes of something else",
            hint="copy the file anew from a machine of the cluster",
        )
    return ClusterKey(bytes.fromhex(match[1].decode()))


def create_key(path: Path) -> ClusterKey:
    """Return the key in a file, which is made with a random key if it isn't there.

    The file comes into being whole, by a link that never replaces another file. If two
    processes start at once, both return the key of the first one.

    Raises:
        SettingsError: It can't be made, or the one that is there can't be used.
    """
    if path.exists():
        return load_key(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(6).hex()}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(os.urandom(KEY_BYTES).hex().encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
            # FileExistsError: another process was faster; its key is the cluster's.
            with contextlib.suppress(FileExistsError):
                os.link(beside, path)
        finally:
            beside.unlink(missing_ok=True)
        sync_directory(path.parent)
    except OSError as error:
        raise SettingsError(
            f"cannot make the cluster key {str(path)!r}: {cause_of(error)}",
            hint="make the directory writable, or name a key file with --key-file",
        ) from error
    return load_key(path)
