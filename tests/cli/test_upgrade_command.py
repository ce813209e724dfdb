"""`upgrade`: shows what each coordinator can, raises the rules, or says who is missing."""

from __future__ import annotations

import argparse
import json
from typing import Any

import pytest

from tasksprint.cli.upgrade_command import upgrade
from tasksprint.encoding import encode_json
from tasksprint.errors import PeerUnreachable, Refused
from tasksprint.net.http_messages import HttpResponse


def _member(replica: int, speaks: dict[str, Any] | None, *, role: str = "voter") -> dict[str, Any]:
    return {
        "replica": replica,
        "address": f"h{replica}:1",
        "role": role,
        "is_leader": replica == 1,
        "speaks": speaks,
    }


NEW = {"release": "0.3.0", "rules": [1, 2], "frames": [2, 3], "commands": [1, 2]}
OLD = {"release": "0.2.0 or older", "rules": [1, 1], "frames": [2, 2], "commands": [1, 1]}


class Leader:
    """Stands for the cluster, and answers as its leader does."""

    def __init__(self, *members: dict[str, Any], missing: list[str] | None = None) -> None:
        self.told = {"rules": 1, "newest": 2, "members": [*members], "missing": missing or []}
        self.asked: list[str] = []
        self.refusals: list[Refused] = []
        self.later = 1  # after so many POSTs the log holds it
        self.known: list[str] = []

    def request(self, method: str, path: str) -> HttpResponse:
        if (method, path) == ("GET", "/v1/members"):
            return HttpResponse(200, {}, b"{}")
        assert path == "/v1/upgrade"
        self.asked.append(method)
        if method == "POST" and self.refusals:
            raise self.refusals.pop(0)
        if method == "POST":
            self.later -= 1
        if not self.later:
            self.told["rules"] = 2
        return HttpResponse(200, {}, encode_json(self.told))

    def also_ask(self, addresses: list[str]) -> None:
        self.known = addresses


def _run(leader: Any, **given: Any) -> int:
    options = {"json": False, "dry_run": False, "timeout": 5.0, **given}
    return upgrade(leader, argparse.Namespace(**options))


def test_rules_are_raised_and_what_each_can_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    leader = Leader(_member(1, NEW), _member(2, NEW, role="learner"))
    leader.refusals = [Refused("a change of the members is under way", status=409)]
    leader.later = 2
    assert _run(leader) == 0
    assert leader.asked == ["GET", "POST", "POST", "POST"]
    assert leader.known == ["h1:1", "h2:1"]
    assert capsys.readouterr().out == (
        "REPLICA  ADDRESS  ROLE     RELEASE  RULES   COMMANDS  FRAMES\n"
        "1        h1:1     leader   0.3.0    1 to 2  1 to 2    2 to 3\n"
        "2        h2:1     learner  0.3.0    1 to 2  1 to 2    2 to 3\n"
        "the log is at version 2 of the rules, the newest that the leader has\n"
    )


def test_who_is_missing_is_shown_and_refused(capsys: pytest.CaptureFixture[str]) -> None:
    leader = Leader(_member(1, NEW), _member(2, OLD), _member(3, None), missing=["a", "b"])
    leader.refusals = [Refused("the rules can't be raised", status=409)]
    with pytest.raises(Refused, match="can't be raised"):
        _run(leader)
    printed = capsys.readouterr().out.splitlines()
    assert printed[2:] == [
        "2        h2:1     voter   0.2.0 or older  1 to 1  1 to 1    2 to 2",
        "3        h3:1     voter   -               -       -         -",
        "the log is at version 1 of the rules, and the leader has version 2",
        "missing: a",
        "missing: b",
    ]


def test_dry_run_changes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    leader = Leader(_member(1, NEW), _member(2, OLD), missing=["replica 2 …"])
    assert _run(leader, dry_run=True, json=True) == 0
    assert leader.asked == ["GET"]
    assert json.loads(capsys.readouterr().out) == leader.told


def test_leader_is_found_by_what_every_release_knows() -> None:
    """An old follower knows no path of the upgrade, but says who leads where it is asked this."""

    class Mixed(Leader):
        at = "an old follower"

        def request(self, method: str, path: str) -> HttpResponse:
            if path == "/v1/members":
                self.at = "the leader"
            elif self.at == "an old follower":
                raise Refused("no such path", status=404)
            return super().request(method, path)

    assert _run(Mixed(_member(1, NEW))) == 0


def test_leader_of_an_old_release_is_named_as_the_reason() -> None:
    class Old(Leader):
        def request(self, method: str, path: str) -> HttpResponse:
            if path == "/v1/members":
                return super().request(method, path)
            raise Refused("no such path", status=404)

    with pytest.raises(Refused, match=r"runs a release before 0\.3\.0, which can't raise rules"):
        _run(Old())


def test_who_waits_too_long_is_told_so() -> None:
    leader = Leader(_member(1, NEW))
    leader.later = 10**6
    with pytest.raises(PeerUnreachable, match="the rules are still at version 1"):
        _run(leader, timeout=0.0)
