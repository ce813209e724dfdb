"""The key's file and signatures."""

from __future__ import annotations

import hashlib
import hmac
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tasksprint.errors import SettingsError
from tasksprint.net.keys import (
    UNKNOWN_LIFE,
    ClusterKey,
    Mac,
    create_key,
    find_key_file,
    load_key,
    open_key,
)
from tests.net.support import KEY, OTHER_KEY

SECRET = bytes(range(32))


def _same(one: ClusterKey, other: ClusterKey) -> bool:
    return one.token_mac("read", 0) == other.token_mac("read", 0)


def test_mac_is_hmac_sha256() -> None:
    for size in (0, 1, 63, 64, 65, 5000):
        message = os.urandom(size)
        expected = hmac.digest(SECRET, message, "sha256")
        assert Mac(SECRET).digest(message) == expected
        assert Mac(SECRET).digest(message[:7], memoryview(message)[7:]) == expected


def _mac(message: str, rest: bytes = b"") -> str:
    return hmac.new(SECRET, message.encode() + rest, hashlib.sha256).hexdigest()


def test_signature_is_as_documented() -> None:
    body = hashlib.sha256(b"data").hexdigest()
    key = ClusterKey(SECRET)
    key.learn_life("h:1", "f" * 16, signed_for=UNKNOWN_LIFE)
    signature = key.sign("POST", "/v1/x?a=1", "h:1", body=body)
    kind, _, rest = signature.authorization.partition(" ")
    fields = dict(pair.split("=") for pair in rest.split(","))
    assert kind == "TaskSprint"
    assert (fields["life"], fields["body"]) == ("f" * 16, body)
    message = f"tasksprint-request\nPOST /v1/x?a=1 h:1\n{'f' * 16} {fields['nonce']}\n{body}"
    assert fields["mac"] == signature.mac == _mac(message)
    assert len(fields["nonce"]) == 32 and signature.life == "f" * 16


def test_proof_of_an_answer_is_as_documented() -> None:
    lines = b"Content-Type: application/json\r\nContent-Length: 2\r\n"
    message = "tasksprint-answer\nabc whole 200\n"
    assert KEY.answer_mac("abc", "whole", 200, lines, b"{}") == _mac(message, lines + b"\r\n{}")
    frame = KEY.frame_mac("def", 7, b"data")
    assert frame.hex() == _mac("tasksprint-frame\ndef 7\n", b"data")


def test_no_two_signatures_have_the_same_nonce() -> None:
    nonces = {KEY.sign("GET", "/", "h").authorization.split(",")[1] for _ in range(100)}
    assert len(nonces) == 100


def test_life_of_each_server_is_remembered_by_its_address() -> None:
    key = ClusterKey(SECRET)
    assert not key.knows_life("h:1")
    assert key.sign("GET", "/", "h:1").life == UNKNOWN_LIFE
    key.learn_life("h:1", "a" * 16, signed_for=UNKNOWN_LIFE)
    assert key.knows_life("h:1") and not key.knows_life("h:2")
    assert not key.needs_life("h:1", 1 << 20) and key.needs_life("h:2", 1 << 20)
    assert not key.needs_life("h:2", 1_000)
    assert [key.sign("GET", "/", address).life for address in ("h:1", "h:2")] == [
        "a" * 16,
        UNKNOWN_LIFE,
    ]


def test_process_whose_number_was_used_by_another_takes_a_new_name() -> None:
    """A machine was copied with its memory: both copies sign as the same sender."""
    key = ClusterKey(SECRET)

    def sender() -> str:
        return key.sign("GET", "/", "h:1").authorization.partition("nonce=")[2][:16]

    first = sender()
    key.learn_life("h:1", "a" * 16, signed_for=UNKNOWN_LIFE)
    assert sender() == first
    key.learn_life("h:1", "a" * 16, signed_for="a" * 16)
    assert sender() != first


def test_lives_are_bounded() -> None:
    key = ClusterKey(SECRET)
    for number in range(10_000):
        key.learn_life(f"h:{number}", "a" * 16, signed_for=UNKNOWN_LIFE)
    assert sum(key.knows_life(f"h:{number}") for number in range(10_000)) < 5_000
    assert key.knows_life("h:9999")


def test_fingerprint_tells_keys_apart_and_nothing_of_them() -> None:
    assert KEY.fingerprint == ClusterKey(SECRET).fingerprint != OTHER_KEY.fingerprint
    assert len(KEY.fingerprint) == 16 and KEY.fingerprint not in SECRET.hex()


def test_key_does_not_show_itself() -> None:
    assert SECRET.hex() not in repr(KEY) + str(KEY)
    assert repr(KEY) == "ClusterKey(…)"


# --- the file ---


def test_key_is_made_once_and_only_for_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "state" / "tasksprint" / "key"
    made = create_key(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert len(path.read_bytes()) == 65
    assert _same(made, create_key(path))
    assert _same(made, load_key(path))
    assert os.listdir(path.parent) == ["key"]


def test_two_keys_differ(tmp_path: Path) -> None:
    assert not _same(create_key(tmp_path / "a"), create_key(tmp_path / "b"))


@pytest.mark.slow
def test_processes_that_start_at_once_agree_on_one_key(tmp_path: Path) -> None:
    path = tmp_path / "state" / "key"
    program = (
        "import sys, pathlib\n"
        "from tasksprint.net.keys import create_key\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "print(create_key(pathlib.Path(sys.argv[1])).token_mac('read', 0))\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        for _ in range(4)
    ]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    answers = {process.communicate(timeout=30)[0] for process in processes}
    assert answers == {load_key(path).token_mac("read", 0) + "\n"}
    assert os.listdir(path.parent) == ["key"]


def test_another_process_that_was_faster_wins(tmp_path: Path, monkeypatch: object) -> None:
    """The file appears between the look and the link."""
    path = tmp_path / "key"
    real_link = os.link
    faster: list[ClusterKey] = []

    def link(source: Path, target: Path) -> None:
        if not faster:
            faster.append(ClusterKey(SECRET))
            target.write_text(SECRET.hex())
            target.chmod(0o600)
        real_link(source, target)

    monkeypatch.setattr(os, "link", link)  # type: ignore[attr-defined]
    assert _same(create_key(path), faster[0])
    assert os.listdir(tmp_path) == ["key"]


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660])
def test_key_file_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "key"
    create_key(path)
    path.chmod(mode)
    with pytest.raises(SettingsError) as caught:
        load_key(path)
    assert str(caught.value) == (
        f"key file {str(path)!r} can be read by others: its mode is 0{mode:o}, expected 0600; "
        f"run: chmod 600 {path}"
    )


@pytest.mark.parametrize("content", [b"", b"abc", b"g" * 64, b"a" * 63, b"a" * 65, b"\xff" * 64])
def test_malformed_key_file_is_refused_without_showing_it(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(SettingsError) as caught:
        load_key(path)
    assert str(caught.value) == (
        f"key file {str(path)!r} is malformed: expected 64 hexadecimal digits, found "
        f"{len(content)} bytes of something else; copy the file anew from a machine of the cluster"
    )


def test_key_file_may_end_with_a_newline_or_not(tmp_path: Path) -> None:
    for number, end in enumerate(("", "\n", "\r\n")):
        path = tmp_path / str(number)
        path.write_text(SECRET.hex() + end, newline="")
        path.chmod(0o600)
        assert _same(load_key(path), KEY)


def test_missing_key_file_is_explained(tmp_path: Path) -> None:
    path = tmp_path / "key"
    with pytest.raises(SettingsError) as caught:
        load_key(path)
    assert str(caught.value).startswith(f"there is no cluster key at {str(path)!r}; start a")
    assert "--key-file or TASKSPRINT_KEY_FILE" in str(caught.value)


def test_directory_is_no_key_file(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"cannot read key file '.*': is a directory"):
        load_key(tmp_path)


def test_place_without_write_access_is_explained(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(SettingsError, match=r"cannot make the cluster key '.*': not a directory"):
        create_key(blocker / "state" / "key")


def test_key_is_looked_for_in_order(tmp_path: Path) -> None:
    environ = {"TASKSPRINT_KEY_FILE": "/from/environment"}
    assert find_key_file("/named", state_dir=tmp_path, environ=environ) == (Path("/named"), False)
    assert find_key_file(None, state_dir=tmp_path, environ=environ) == (
        Path("/from/environment"),
        False,
    )
    assert find_key_file(None, state_dir=tmp_path, environ={}) == (tmp_path / "key", True)


def test_key_is_made_at_its_default_place_only(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="there is no cluster key"):
        open_key(str(tmp_path / "named"), state_dir=tmp_path, may_create=True, environ={})
    with pytest.raises(SettingsError, match="there is no cluster key"):
        open_key(None, state_dir=tmp_path, may_create=False, environ={})
    made = open_key(None, state_dir=tmp_path, may_create=True, environ={})
    assert _same(made, open_key(None, state_dir=tmp_path, may_create=False, environ={}))
