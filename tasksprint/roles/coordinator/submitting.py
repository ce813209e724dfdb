"""Checks a job before it may stand in the log: reads the request that submits it, exactly.

Every replica and every client takes some things for granted of a job. They are checked here,
once, and the sender hears what is wrong. Numbers are read as they were written: elsewhere in
this program the JSON reader would make a float of an integer that is too large.
"""

from __future__ import annotations

import difflib
import json
from typing import Any

from tasksprint.coordination.commands import SubmitJob
from tasksprint.encoding import decode_json, encode_json
from tasksprint.errors import Refused, RemoteProtocolError
from tasksprint.process.job_directory import MANIFEST_MEMBERS
from tasksprint.settings import RULES

__all__ = ["read_submit"]

_INTEGER_END = 2**63
# Of counts and milliseconds in a manifest: exact in every language.
_COUNT_END = 2**53
_MEMBERS = ("sender", "request", "name", "seed", "params", "program", "manifest")
_SHOWN_MAX = 80


def read_submit(body: bytes) -> SubmitJob:
    """Return the command that submits a job.

    Raises:
        Refused: It can't be one (status 400); the sentence names the fault.
    """
    fields = _object(body, "the body")
    for name in fields:
        if name not in _MEMBERS:
            raise _wrong(f"the body has an unknown member {name!r:.80}")
    manifest = _for_clients(_object(_text(fields, "manifest").encode(), "the manifest"))
    params = _text(fields, "params")
    _object(params.encode(), "the job's parameters")
    name, sender = _text(fields, "name"), _text(fields, "sender")
    for what, text in (("name", name), ("sender", sender)):
        size = len(text.encode())
        if size > RULES.name_bytes_max:
            raise _wrong(f"{what!r} has {size} bytes, expected at most {RULES.name_bytes_max}")
    return SubmitJob(
        sender=sender,
        request=_integer(fields, "request", _INTEGER_END),
        name=name,
        seed=_integer(fields, "seed", _INTEGER_END),
        params=params,
        program=_text(fields, "program"),
        manifest=encode_json(manifest).decode(),
    )


def _wrong(text: str) -> Refused:
    return Refused(text, status=400)


def _object(text: bytes, what: str) -> dict[str, Any]:
    """Return the JSON object that a text is, with integers as they stand there."""
    try:
        decode_json(text)  # Also finds bytes that are no UTF-8 and no Unicode.
        value: Any = json.loads(text, object_pairs_hook=_unique)
    except RemoteProtocolError as error:
        if "infinity" in str(error):
            raise _wrong(
                f"{what}: a number is too large; give numbers of more than 308 digits as strings"
            ) from error
        raise _wrong(f"{what}: {error}") from error
    except ValueError as error:
        raise _wrong(f"{what}: {error}") from error
    except RecursionError as error:
        raise _wrong(f"{what}: nested too deeply") from error
    if not isinstance(value, dict):
        raise _wrong(f"{what}: found {_shown(value)}, expected a JSON object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"{twice!r:.80} stands twice in one object")
    return members


def _shown(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False)
    except RecursionError:
        return "nested too deeply"
    return text if len(text) <= _SHOWN_MAX else text[: _SHOWN_MAX - 3] + "..."


def _text(fields: dict[str, Any], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str):
        raise _wrong(f"{name!r} is {_shown(value)}, expected a string")
    return value


def _integer(fields: dict[str, Any], name: str, end: int) -> int:
    value = fields.get(name)
    if type(value) is not int or not 0 <= value < end:
        power = end.bit_length() - 1
        raise _wrong(f"{name!r} is {_shown(value)}, expected an integer from 0 to 2**{power} - 1")
    return value


def _for_clients(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return the manifest as it stands in the log.

    Its "node" is the one string that views carry: "attached:NAME", or JSON with all that is
    needed to start a node. Its "params" stay out: the job has parameters of its own.
    """
    for name in manifest:
        if name not in MANIFEST_MEMBERS:
            nearest = difflib.get_close_matches(name, MANIFEST_MEMBERS, n=1, cutoff=0.5)
            meant = f"; did you mean {nearest[0]!r}?" if nearest else ""
            raise _wrong(f"the manifest has an unknown field {name!r:.80}{meant}")
    for name in ("scheduler", "node", "setup"):
        words = manifest.get(name, [] if name == "setup" else None)
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise _wrong(f"the manifest's {name!r} is not a list of strings")
        if not words and name != "setup":
            raise _wrong(f"the manifest's {name!r} is empty")
    for name in ("name", "interpreter"):
        if not isinstance(manifest.get(name, ""), str):
            raise _wrong(f"the manifest's {name!r} is not a string")
    for name, end in (("retries", _COUNT_END), ("timeout_ms", _COUNT_END), ("seed", _INTEGER_END)):
        if manifest.get(name) is not None:
            try:
                _integer(manifest, name, end)
            except Refused as error:
                raise _wrong(f"the manifest's {error}") from None
    if not isinstance(manifest.get("check_determinism", False), bool):
        raise _wrong("the manifest's 'check_determinism' is not true or false")
    environment = manifest.get("environment", {})
    if not isinstance(environment, dict) or not all(
        isinstance(value, str) and name and "=" not in name and "\0" not in name + value
        for name, value in environment.items()
    ):
        raise _wrong("the manifest's 'environment' is not an object of texts")
    logged = {name: value for name, value in manifest.items() if name != "params"}
    node = manifest["node"]
    if node[0].startswith("attached:"):
        return {**logged, "node": node[0]}
    start = {"node": node}
    for name in ("interpreter", "setup", "environment"):
        if name in manifest:
            start[name] = manifest[name]
    return {**logged, "node": encode_json(start).decode()}
