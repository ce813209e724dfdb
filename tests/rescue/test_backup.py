"""Whom `backup` asks, and what is left of one that was interrupted."""

from __future__ import annotations

import argparse
import hashlib
import os
from pathlib import Path
from typing import Any, cast

import pytest

from tasksprint.asking.cluster import Cluster
from tasksprint.encoding import encode_json
from tasksprint.errors import (
    PeerUnreachable,
    Refused,
    RemoteProtocolError,
    StoreError,
    UsageError,
)
from tasksprint.net.http_messages import HttpResponse
from tasksprint.rescue import backup as backup_module
from tasksprint.rescue.backup import _Backup, _Source, _sources, run_backup
from tasksprint.settings import Settings
from tasksprint.store.backup_file import check_backup
from tasksprint.store.copy_pieces import piece_body
from tasksprint.store.mirror_snapshot import CopyPiece


class Coordinators:
    """Coordinators by address: (replica, leader, applied slot, cluster); None: it is down."""

    def __init__(self, *found: tuple[int, int, int, str | None] | None) -> None:
        self.addresses = [f"h:{number}" for number, _ in enumerate(found, 1)]
        self._found = dict(zip(self.addresses, found, strict=True))

    def direct(self, address: str, method: str, path: str, **_: bool) -> HttpResponse:
        found = self._found[address]
        if found is None:
            raise PeerUnreachable(f"cannot reach {address}")
        names = ("replica", "leader", "applied_slot", "cluster")
        status: dict[str, Any] = dict(zip(names, found, strict=True))
        known = dict(enumerate(self.addresses, 1))
        members = {str(number): address for number, address in known.items()}
        return HttpResponse(200, {}, encode_json({**status, "members": members}))

    def asked(self, *named: str) -> list[int]:
        """Return the replicas that are asked for their state, in order."""
        addresses = list(named) or self.addresses
        return [source.replica for source in _sources(cast(Cluster, self), addresses)]


@pytest.mark.parametrize(
    ("coordinators", "replicas"),
    [
        # A follower, of those that are far enough the one that is furthest.
        (Coordinators((1, 1, 5_000, "c"), (2, 1, 4_998, "c"), (3, 1, 4_999, "c")), [3, 2, 1]),
        (Coordinators((1, 1, 5_000, "c"), (2, 1, 4_000, "c"), (3, 1, 3_000, "c")), [2, 1, 3]),
        # The leader, if all others are far behind, or down, or new.
        (Coordinators((1, 1, 5_000, "c"), (2, 1, 3_999, "c")), [1, 2]),
        (Coordinators(None, (2, 2, 7, "c"), (3, 2, 0, None)), [2]),
    ],
)
def test_backup_is_taken_from_one_that_is_far_enough(
    coordinators: Coordinators, replicas: list[int]
) -> None:
    assert coordinators.asked() == replicas


def test_other_members_are_asked_after_those_that_are_named() -> None:
    coordinators = Coordinators(
        (1, 1, 5_000, "c"), (2, 1, 4_000, "c"), None, (4, 1, 4_999, "c"), (5, 5, 9_000, "d")
    )
    assert coordinators.asked("h:1") == [1, 4, 2]
    assert coordinators.asked("h:3", "h:2") == [2, 4, 1]


@pytest.mark.parametrize("status", [{"tasks": {}}, [], {"replica": 1, "members": []}])
def test_backup_of_what_is_no_coordinator_is_refused(status: Any) -> None:
    class Other:
        def direct(self, address: str, method: str, path: str, **_: bool) -> HttpResponse:
            return HttpResponse(200, {}, encode_json(status))

    with pytest.raises(PeerUnreachable, match="no coordinator can be backed up: h:1: "):
        next(_sources(cast(Cluster, Other()), ["h:1"]))


def test_backup_of_nobody_and_of_several_clusters_is_refused() -> None:
    with pytest.raises(PeerUnreachable) as caught:
        Coordinators(None, (2, 0, 0, None)).asked()
    assert str(caught.value) == (
        "no coordinator can be backed up: h:1: cannot reach h:1; h:2: replica 2 is in no cluster "
        "yet; name others with --coordinators"
    )
    with pytest.raises(UsageError, match="coordinators of several clusters answer: c, d; name"):
        Coordinators((1, 1, 5, "d"), (2, 2, 5, "c")).asked()


class Giver:
    """A coordinator that gives the empty state in three pieces, unless something happens."""

    def __init__(self, at: str = "", happens: BaseException | None = None) -> None:
        self.at = at
        self.happens = happens
        self.asked: list[str] = []
        self.settings = Settings(mirror_session_idle_ms=1)

    def direct(self, address: str, method: str, path: str, **_: bool) -> HttpResponse:
        self.asked.append(path)
        if path == self.at and self.happens is not None:
            raise self.happens
        if path == "/v1/mirror":
            opened = {"session": "s", "cluster": "c", "origins": [], "memberships": None}
            return HttpResponse(200, {}, encode_json({**opened, "slot": 0, "digest": ""}))
        if path.endswith("/close"):
            return HttpResponse(200, {}, b"{}")
        number = int(path.rpartition("/")[2])
        place = None if number == 2 else ("jobs", (1,))
        whole = hashlib.sha256(b"[]" * (number + 1)).hexdigest()
        return HttpResponse(200, {}, piece_body(CopyPiece("jobs", 0, b"[]", place), number, whole))


def back_up(giver: Giver, path: Path) -> dict[str, Any]:
    source = _Source("h:2", 2, "c", 7, is_leader=False, members=())
    return _Backup(cast(Cluster, giver), source, path).make(may_replace=False)


def test_backup_is_made_of_all_pieces_and_the_copy_is_closed(tmp_path: Path) -> None:
    giver = Giver()
    told = back_up(giver, tmp_path / "backup")
    assert (told["cluster"], told["replica"], told["jobs"]) == ("c", 2, 0)
    assert giver.asked == ["/v1/mirror", *[f"/v1/mirror/s/{n}" for n in (0, 1, 2, "close")]]
    assert check_backup(tmp_path / "backup").records == 5
    assert [each.name for each in tmp_path.iterdir()] == ["backup"]


def test_nobody_is_asked_for_a_copy_that_cannot_be_written(tmp_path: Path) -> None:
    giver = Giver()
    with pytest.raises(StoreError, match="cannot write backup"):
        back_up(giver, tmp_path / "nowhere" / "backup")
    assert giver.asked == []


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("sort", ["link", "link to nothing", "pipe"])
def test_what_is_no_ordinary_file_is_not_overwritten(
    tmp_path: Path, sort: str, force: bool
) -> None:
    path = tmp_path / "backup"
    if sort == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(tmp_path / "other")
        if sort == "link":
            (tmp_path / "other").write_text("mine")
    before = path.lstat()
    options = argparse.Namespace(file=str(path), force=force, coordinators="h:1", json=False)
    with pytest.raises(UsageError, match="is no ordinary file; name another one"):
        run_backup(cast(Cluster, Giver()), options)
    assert path.lstat().st_ino == before.st_ino


@pytest.mark.parametrize(
    "happens", [KeyboardInterrupt(), PeerUnreachable("it is gone"), RemoteProtocolError("what?")]
)
@pytest.mark.parametrize("at", ["/v1/mirror", "/v1/mirror/s/0", "/v1/mirror/s/2"])
def test_interrupted_backup_leaves_nothing(
    tmp_path: Path, at: str, happens: BaseException
) -> None:
    giver = Giver(at, happens)
    with pytest.raises(type(happens)):
        back_up(giver, tmp_path / "backup")
    assert list(tmp_path.iterdir()) == []
    assert giver.asked[-1] == ("/v1/mirror/s/close" if at != "/v1/mirror" else at)


def test_backup_that_the_disk_spoils_at_once_gets_no_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(path: Path) -> Any:
        path.write_bytes(path.read_bytes().replace(b"jobs", b"j0bs", 1))
        return check_backup(path)

    monkeypatch.setattr(backup_module, "check_backup", spoil)
    with pytest.raises(StoreError, match="the backup isn't what was written: "):
        back_up(Giver(), tmp_path / "backup")
    assert list(tmp_path.iterdir()) == []


def test_backup_goes_on_to_the_next_that_gives_one(tmp_path: Path) -> None:
    path = tmp_path / "backup"
    path.write_text("of yesterday")

    class Three(Giver):
        """Two of three can't give it: one is busy, one goes away in the middle."""

        def direct(self, address: str, method: str, path: str, **_: bool) -> HttpResponse:
            if path == "/v1/status":
                status = {"replica": int(address[-1]), "leader": 3, "cluster": "c"}
                members = {str(number): f"h:{number}" for number in (1, 2, 3)}
                more = {"applied_slot": 5, "members": members}
                return HttpResponse(200, {}, encode_json({**status, **more}))
            if address == "h:1" and path == "/v1/mirror":
                raise Refused("this replica gives 2 copies already", status=503)
            if address in away and path == "/v1/mirror/s/1":
                raise PeerUnreachable("it is gone")
            return super().direct(address, method, path)

    options = argparse.Namespace(file=str(path), force=True, coordinators="h:1", json=True)
    away = ["h:2", "h:3"]
    with pytest.raises(PeerUnreachable) as caught:
        run_backup(cast(Cluster, Three()), options)
    assert str(caught.value) == (
        "no coordinator gives a copy of its state: h:1: this replica gives 2 copies already; "
        "h:2: it is gone; h:3: it is gone; try again later"
    )
    assert path.read_text() == "of yesterday"
    away.remove("h:3")
    run_backup(cast(Cluster, Three()), options)
    assert check_backup(path).head["replica"] == 3
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("has_links", [True, False])
def test_second_backup_to_one_name_fails_also_if_both_began_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_links: bool
) -> None:
    path = tmp_path / "backup"

    class Slow(Giver):
        """Gives its last piece only after another backup was made."""

        def direct(self, address: str, method: str, path: str, **_: bool) -> HttpResponse:
            if path == "/v1/mirror/s/2":
                back_up(Giver(), tmp_path / "backup")
            return super().direct(address, method, path)

    if not has_links:

        def refuse(source: Path, target: Path) -> None:
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(UsageError, match="backup' exists already; --force overwrites it"):
        back_up(Slow(), path)
    assert check_backup(path).problems == []
    assert list(tmp_path.iterdir()) == [path]
