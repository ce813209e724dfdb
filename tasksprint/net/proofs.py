r"""Answers that prove themselves: a server adds a proof, and a receiver demands it.

Anybody who may listen on an address can answer there. A dead coordinator's port is free for
everybody. So an answer to a signed request counts only with

    Proof: <kind> <64 hex digits>

The digits are HMAC-SHA256 with the cluster key over

    tasksprint-answer\n
    <mac of the request> <kind> <status>\n
    <the head's lines between the first one and this one, as they are>
    \r\n
    <the kind's own part>

The request's mac stands for everything that it covers: method, path, address, life, nonce and
body. So an answer counts for one request, once. Lines after the proof (`Connection`,
`Transfer-Encoding`) belong to the connection; nobody else reads them. The kinds, and their own
parts:

    whole   the body
    line    the body's first line, with its newline; it holds digests of all that follows,
            and a receiver asks for such an answer only if it checks them
    digest  nothing: a line of the head, `Body-Sha256`, names the body's digest
    frames  nothing: the body comes in frames, each with a proof of its own

A frame is its size (4 bytes, big-endian), the first 16 bytes of HMAC-SHA256 over

    tasksprint-frame\n
    <the 64 digits of the answer's proof> <number of the frame, from 0>\n
    <data>

and the data. A frame without data is the end. A body that stops before it was cut off.

Refusals are proved, too, once the mac of the request was right. An answer without a proof says
only "something answers here".
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from typing import Any

from tasksprint.errors import PeerUnreachable, RemoteProtocolError, UnprovenAnswer
from tasksprint.net.keys import NO_BODY, UNKNOWN_LIFE, ClusterKey

__all__ = [
    "DIGEST",
    "DIGEST_HEADER",
    "FRAMES",
    "FRAME_BYTES",
    "LIFE_HEADER",
    "LINE",
    "MISADDRESSED_HEADER",
    "WHOLE",
    "WHOLE_BYTES_MAX",
    "AnswerProof",
    "FrameWriter",
    "SignedRequest",
    "proof_line",
]

WHOLE = "whole"
LINE = "line"
DIGEST = "digest"
FRAMES = "frames"

DIGEST_HEADER = "Body-Sha256"
# In a 401: the life for which the request should have been signed.
LIFE_HEADER = "Life"
# In a 401: the address for which the request was signed. It is none of the refuser's.
MISADDRESSED_HEADER = "Misaddressed"

# Bodies of more than this go in frames: hashing one whole would hold up the loop.
FRAME_BYTES = 256 * 1024
# Bytes of a body that are kept before it is proved as a whole.
WHOLE_BYTES_MAX = 1024 * 1024

_FRAME_HEAD = struct.Struct(">I16s")
_MAC_BYTES = 16
_UNAUTHORIZED = 401
_PROOF = b"proof"


def proof_line(
    key: ClusterKey, request_mac: str, kind: str, status: int, lines: bytes, body: bytes
) -> tuple[str, str]:
    """Return the hex digits that prove an answer, and the line of its head with them."""
    covered: bytes | memoryview = b""
    if kind == WHOLE:
        covered = body
    elif kind == LINE:
        covered = memoryview(body)[: body.index(b"\n") + 1]
    mac = key.answer_mac(request_mac, kind, status, lines, covered)
    return mac, f"Proof: {kind} {mac}\r\n"


class FrameWriter:
    """Puts the pieces of a body into frames."""

    __slots__ = ("_answer_mac", "_key", "_number")

    def __init__(self, key: ClusterKey, answer_mac: str) -> None:
        self._key = key
        self._answer_mac = answer_mac
        self._number = 0

    def frames(self, data: bytes | memoryview) -> list[bytes | memoryview]:
        """Return the next piece as parts to be written one after the other."""
        parts: list[bytes | memoryview] = []
        view = memoryview(data)
        for start in range(0, len(view), FRAME_BYTES):
            piece = view[start : start + FRAME_BYTES]
            parts += [self._head(piece), piece]
        return parts

    def end(self) -> bytes:
        """Return the frame that ends a body."""
        return self._head(b"")

    def _head(self, piece: bytes | memoryview) -> bytes:
        mac = self._key.frame_mac(self._answer_mac, self._number, piece)
        self._number += 1
        return _FRAME_HEAD.pack(len(piece), mac[:_MAC_BYTES])


class AnswerProof:
    """Checks one answer by its head's lines, its status and its body; reads nothing itself.

    The order of calls: `add_line` for each line of the head, then `check_head`. Then, by kind:

        whole, line   `check_body` with the whole body
        frames        `unframe` for each piece, `check_end`
        digest        `count` for each piece, `check_counted`

    Args:
        request_mac: The mac of the request that is answered.
        address: Where it was sent, for errors.
    """

    # (No slots: fields that most answers don't need are set in the class. So one is cheaper.)
    _status = 0
    _mac = ""
    _named_digest = ""
    _frame_number = 0
    _hash: Any = None  # of a body whose digest is named, while nobody else checks it
    _pending = b""
    kind = ""  # "" until the proof was seen
    takes_line = False  # The caller checks the lines after a proved first line.
    is_ended = False  # the last frame was read

    def __init__(self, key: ClusterKey, request_mac: str, address: str) -> None:
        self._key = key
        self._request_mac = request_mac
        self._address = address
        self._lines: list[bytes] = []

    def add_line(self, name: bytes, value: bytes) -> bool:
        """Take a line of the head; return whether it may be believed once all is checked."""
        if self.kind:
            return False
        if len(name) == len(_PROOF) and name.lower() == _PROOF:
            kind, _, self._mac = value.decode("latin-1").partition(" ")
            self.kind = kind or "?"
            return False
        self._lines += (name, b": ", value, b"\r\n")
        return True

    def begin_again(self) -> None:
        """Forget the head: it belonged to an interim answer, and such an answer says nothing."""
        self._lines.clear()
        self.kind = self._mac = ""

    def check_head(self, status: int, headers: dict[str, str]) -> None:
        """Check what can be without the body; before any of the body is kept.

        Raises:
            UnprovenAnswer: It has no proof, or a wrong one.
        """
        self._status = status
        kind = self.kind
        if kind == WHOLE or (kind == LINE and self.takes_line):
            return  # It takes the body.
        if kind not in (FRAMES, DIGEST):
            raise self.unproven()
        self._check(b"")
        if kind == DIGEST:
            self._named_digest = headers.get(DIGEST_HEADER.lower(), "")
            self._hash = hashlib.sha256()

    def check_body(self, body: bytes, digest: str | None = None) -> None:
        """Check a whole body.

        Args:
            digest: Of the body, if it was counted already.

        Raises:
            UnprovenAnswer: It isn't the one that was proved.
        """
        kind = self.kind
        if kind == WHOLE:
            self._check(body)
        elif kind == LINE:
            self._check(memoryview(body)[: body.find(b"\n") + 1])
        else:
            assert kind == DIGEST, f"a body of kind {kind!r}"
            self.check_digest(digest or hashlib.sha256(body).hexdigest())

    def check_digest(self, digest: str) -> None:
        """Check the digest of a body against the one that the head names.

        Raises:
            UnprovenAnswer: It is another one.
        """
        if digest != self._named_digest:
            raise UnprovenAnswer(
                f"what answers at {self._address} sent a body with another digest than it named",
                status=self._status,
            )

    def trust_caller(self, digest: str) -> None:
        """Leave it to the caller to check that the body has a digest.

        Raises:
            UnprovenAnswer: The head names another one.
        """
        if self.kind == DIGEST:
            self.check_digest(digest)
            self._hash = None

    def count(self, piece: bytes) -> None:
        """Take the next piece of a body with a named digest."""
        if self._hash is not None:
            self._hash.update(piece)

    def check_counted(self) -> None:
        """Check that all pieces together have the named digest.

        Raises:
            UnprovenAnswer: They have another one.
        """
        if self._hash is not None:
            self.check_digest(self._hash.hexdigest())
            self._hash = None

    def unframe(self, data: bytes) -> list[bytes]:
        """Return the pieces of the body that `data` completes.

        Raises:
            UnprovenAnswer: One isn't the next that was proved.
        """
        if self._pending:
            data = self._pending + data
        pieces: list[bytes] = []
        start, end = 0, len(data)
        while end - start >= _FRAME_HEAD.size:
            size, mac = _FRAME_HEAD.unpack_from(data, start)
            if self.is_ended or size > FRAME_BYTES:
                raise self.unproven()
            frame_end = start + _FRAME_HEAD.size + size
            if frame_end > end:
                break
            piece = data[start + _FRAME_HEAD.size : frame_end]
            expected = self._key.frame_mac(self._mac, self._frame_number, piece)
            if not hmac.compare_digest(expected[:_MAC_BYTES], mac):
                raise self.unproven()
            self._frame_number += 1
            start = frame_end
            if size:
                pieces.append(piece)
            else:
                self.is_ended = True
        self._pending = data[start:]
        return pieces

    def check_end(self) -> None:
        """Check that a body in frames was not cut off.

        Raises:
            UnprovenAnswer: Its last frame is missing.
        """
        if not self.is_ended or self._pending:
            raise self.unproven()

    def unproven(self) -> UnprovenAnswer:
        """Return the error for an answer that doesn't prove the key."""
        what = f"doesn't prove the cluster key (status {self._status})"
        if self._status == _UNAUTHORIZED:
            what = "has another cluster key"
        return UnprovenAnswer(
            f"what answers at {self._address} {what}",
            status=self._status,
            hint="both sides must use the same key file (--key-file, TASKSPRINT_KEY_FILE)",
        )

    def _check(self, covered: bytes | memoryview) -> None:
        lines = b"".join(self._lines)
        mac = self._key.answer_mac(self._request_mac, self.kind, self._status, lines, covered)
        if not (self._mac.isascii() and hmac.compare_digest(mac, self._mac)):
            raise self.unproven()


class SignedRequest:
    """One request on its way: signed, and signed anew, once, for another life of the server.

    Args:
        repeatable: Whether doing it twice is doing it once.
        takes_line: Whether the caller checks what follows a proved first line of the answer.
    """

    __slots__ = (
        "_address",
        "_body",
        "_is_told",
        "_key",
        "_method",
        "_repeatable",
        "_signed_for",
        "_takes_line",
        "proof",
        "target",
    )

    proof: AnswerProof  # of the answer to what was signed last

    def __init__(
        self,
        key: ClusterKey,
        method: str,
        target: str,
        address: str,
        *,
        body: str = NO_BODY,
        repeatable: bool = True,
        takes_line: bool = False,
    ) -> None:
        self._key = key
        self._method = method
        self.target = target
        self._address = address
        self._body = body
        self._repeatable = repeatable
        self._takes_line = takes_line
        self._signed_for = UNKNOWN_LIFE
        self._is_told = False

    def sign(self) -> str:
        """Return the Authorization for one try, which is made now: a nonce counts once."""
        authorization, mac, self._signed_for = self._key.sign(
            self._method, self.target, self._address, body=self._body
        )
        self.proof = AnswerProof(self._key, mac, self._address)
        self.proof.takes_line = self._takes_line
        return authorization

    def must_go_again(self, status: int, headers: dict[str, str], body: bytes) -> bool:
        """Take an answer; return whether it has to be signed anew and sent again.

        Raises:
            PeerUnreachable: It may have been carried out, and must not be twice.
            RemoteProtocolError: The server tells another life again, or isn't the one that
                was meant, whoever brought it the request.
            UnprovenAnswer: The answer doesn't prove the key.
        """
        if status != _UNAUTHORIZED or self.proof.kind != WHOLE:
            return False
        address, signed_for = self._address, self._signed_for
        life = headers.get(LIFE_HEADER.lower())
        if life is None and MISADDRESSED_HEADER.lower() not in headers:
            return False
        self.proof.check_body(body)
        if life is None:
            raise RemoteProtocolError(
                f"what answers at {address} isn't called by that address",
                hint="call it by the address on which it listens, or name this one to it with "
                "--advertise, which may be given several times",
            )
        self._key.learn_life(address, life, signed_for=signed_for)
        if self._is_told and life == signed_for:
            raise RemoteProtocolError(
                f"{address} has received this request before, and may have carried it out: "
                "something on the way sends requests twice"
            )
        if self._is_told:
            raise RemoteProtocolError(
                f"{address} told another life right after it told one: two processes answer "
                "there, or it starts again and again"
            )
        # A life that it had before, or a nonce that it has seen: somebody may have carried the
        # request there, and kept the answer. A request without a life was never carried out.
        if not self._repeatable and signed_for != UNKNOWN_LIFE:
            raise PeerUnreachable(
                f"cannot reach {address}: it was started anew, or has the request already"
            )
        self._is_told = True
        return True
