"""What a member says of its release, and what is made of what another one says."""

from __future__ import annotations

import functools
import json
from typing import Any

import pytest

from tasksprint import __version__
from tasksprint.consensus.codec import FORMAT_VERSION
from tasksprint.errors import RemoteProtocolError
from tasksprint.release import SILENT, THIS_RELEASE, decode_speaks, encode_speaks
from tasksprint.settings import RULES_BY_VERSION

SAID = encode_speaks(THIS_RELEASE.speaks)


def test_release_says_what_it_can() -> None:
    speaks = THIS_RELEASE.speaks
    assert speaks.release == __version__
    assert speaks.rules == speaks.commands == (min(RULES_BY_VERSION), max(RULES_BY_VERSION))
    assert speaks.frames[0] == FORMAT_VERSION
    assert decode_speaks(SAID) == speaks


def test_who_says_nothing_has_the_first_rules_only() -> None:
    assert decode_speaks(None) is SILENT
    assert SILENT.rules == (1, 1)


def test_what_a_later_release_says_beside_is_passed_over() -> None:
    told = json.loads(SAID) | {"more": [1]}
    assert decode_speaks(json.dumps(told)) == THIS_RELEASE.speaks


@pytest.mark.parametrize(
    "change",
    [
        {"rules": [2, 1]},
        {"rules": [0, 1]},
        {"rules": [1, 2, 3]},
        {"rules": "12"},
        {"frames": [1, None]},
        {"commands": 3},
        {"commands": [True, 2]},
        {"release": 3},
        {"release": "0.3.0\nreplica 9 is fine"},
        {"release": functools.reduce(lambda inner, _: [inner], range(900), 1)},
    ],
)
def test_what_makes_no_sense_is_refused(change: dict[str, object]) -> None:
    told = json.dumps(json.loads(SAID) | change)
    with pytest.raises(RemoteProtocolError, match="doesn't say what a release can"):
        decode_speaks(told)


@pytest.mark.parametrize("told", [5, True, [], {}])
def test_what_is_no_text_is_refused(told: Any) -> None:
    """It comes out of a frame, where anything may stand."""
    with pytest.raises(RemoteProtocolError, match="doesn't say what a release can"):
        decode_speaks(told)


@pytest.mark.parametrize("text", ["", "1", "[]", "{}", "null x", '"0.3.0"'])
def test_garbage_is_refused(text: str) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_speaks(text)


def test_long_name_of_a_release_is_cut() -> None:
    told = json.dumps(json.loads(SAID) | {"release": "9" * 5_000})
    assert decode_speaks(told).release == "9" * 40
