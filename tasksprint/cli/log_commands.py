"""`log verify` and `log show`: the contents of a coordinator's file or a backup; is it whole?

Both read only, beside a coordinator that may have the file open. `log skip` stands in log_skip.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tasksprint.cli.progress import counted
from tasksprint.consensus import LogEntry, decode_batch
from tasksprint.consensus.membership import decode_membership_value
from tasksprint.encoding import decode_json, encode_json
from tasksprint.errors import EXIT_OK, RemoteProtocolError, SettingsError, StoreError, UsageError
from tasksprint.process.environment import settings_from_environment
from tasksprint.process.terminal import print_answer
from tasksprint.settings import Settings
from tasksprint.store.backup_file import check_backup
from tasksprint.store.inventory import read_entries, take_inventory
from tasksprint.store.verify import verify
from tasksprint.store.vital import DATABASE_FILE, SLOTS_END

__all__ = ["show_log", "verify_log"]

_SHOWN_CHARACTERS = 100


def verify_log(options: argparse.Namespace) -> int:
    """Carry out `log verify`."""
    settings = settings_from_environment()
    if (options.file is None) == (options.data_dir is None):
        raise UsageError("name a backup's FILE, or --data-dir DIR", hint="one of the two")
    if options.file is not None:
        path = Path(options.file)
        checked, problems = _verify_backup(path)
    else:
        path = _database_in(options.data_dir)
        checked, problems = _verify_store(path, settings)
    told = {"path": str(path), **checked, "problems": problems}
    print_answer(told, [*problems, _describe(checked)], as_json=options.json)
    if problems:
        were = "was" if len(problems) == 1 else "were"
        raise StoreError(
            f"{str(path)!r} isn't as it was written: {counted(len(problems), 'problem')} "
            f"{were} found",
            hint="use another backup"
            if options.file is not None
            else "check the disk, and start its coordinator again: it takes what is lost from "
            "the others, or says that it can't",
        )
    return EXIT_OK


def _database_in(data_dir: str) -> Path:
    path = Path(data_dir) / DATABASE_FILE
    if not path.is_file():
        raise SettingsError(
            f"{data_dir!r} holds no data of a coordinator: it has no {DATABASE_FILE!r}",
            hint="name the --data-dir of one",
        )
    return path


def _verify_backup(path: Path) -> tuple[dict[str, Any], list[str]]:
    found = check_backup(path)
    contents = found.contents
    checked = {
        "what": "backup",
        "cluster": found.head.get("cluster"),
        "slot": found.head.get("slot"),
        "records": found.records,
        "rows": contents.rows,
        "jobs": contents.jobs,
        "jobs_running": len(contents.running),
        "archives": len(found.archives),
        "bytes": found.size,
    }
    return checked, found.problems


def _verify_store(path: Path, settings: Settings) -> tuple[dict[str, Any], list[str]]:
    problems = list(verify(path, settings))
    try:
        inventory = take_inventory(path, settings)
    except StoreError as error:
        # Not even counted; its faults were found before, if there are any.
        return {"what": "store"}, problems or [str(error)]
    return {"what": "store", **asdict(inventory), "bytes": path.stat().st_size}, problems


def _describe(checked: dict[str, Any]) -> str:
    if checked["what"] == "backup":
        return (
            f"checked a backup of cluster {checked['cluster']} at slot {checked['slot']}: "
            f"{checked['records']} records, {checked['rows']} rows, {checked['archives']} "
            f"archives, {checked['bytes']} bytes"
        )
    if "replica" not in checked:
        return "checked what can be read of it"
    return (
        f"checked the store of replica {checked['replica']} of cluster {checked['cluster']}: "
        f"its name and its promise, {checked['entries']} entries of the log up to slot "
        f"{checked['last_slot']}, {sum(checked['rows'].values())} rows of the state at slot "
        f"{checked['applied_slot']}, {checked['archives']} archives, {checked['bytes']} bytes"
    )


# --- showing ---


def show_log(options: argparse.Namespace) -> int:
    """Carry out `log show`."""
    settings = settings_from_environment()
    path = _database_in(options.data_dir)
    first, end = _range_of(options.slot)
    entries = read_entries(path, first, end, settings)
    lines = (line for slot, entry in entries for line in _lines(slot, entry))
    told = [_as_json(slot, entry) for slot, entry in entries] if options.json else None
    print_answer(told, lines, as_json=options.json)
    return EXIT_OK


def _range_of(text: str | None) -> tuple[int, int]:
    """Return the first slot and the end of "17", "17..20", "17.." or "..20"."""
    if text is None:
        return 1, SLOTS_END
    first, dots, last = text.partition("..")
    last = last if dots else first
    if any(part and not part.isdecimal() for part in (first, last)) or not (first or last):
        raise _no_range(text)
    begin, end = int(first or 1), int(last) + 1 if last else SLOTS_END
    if not 1 <= begin < end <= SLOTS_END:
        raise _no_range(text)
    return begin, end


def _no_range(text: str) -> UsageError:
    return UsageError(f"--slot {text!r} is not A..B", hint="for example --slot 17..20")


def _decoded(entry: LogEntry) -> Any:
    """Return what an entry carries: {"membership": …}, or a list of commands."""
    membership = decode_membership_value(entry.value)
    if membership is not None:
        return {"membership": membership.describe(), "number": membership.number}
    return [_command(command) for command in decode_batch(entry.value)]


def _command(data: bytes) -> Any:
    try:
        return decode_json(data)
    except RemoteProtocolError:
        return data.decode(errors="replace")


def _as_json(slot: int, entry: LogEntry | None) -> dict[str, Any]:
    if entry is None:
        return {"slot": slot, "ballot": None, "value": None}
    ballot = [entry.ballot.round, entry.ballot.replica]
    return {"slot": slot, "ballot": ballot, "value": _decoded(entry)}


def _lines(slot: int, entry: LogEntry | None) -> Iterator[str]:
    if entry is None:
        yield f"{slot} fails its checksum"
        return
    head = f"{slot} {entry.ballot.round}.{entry.ballot.replica}"
    found = _decoded(entry)
    if isinstance(found, dict):
        yield f"{head} membership {found['number']}: {found['membership']}"
    elif not found:
        yield f"{head} nothing"
    else:
        for command in found:
            text = encode_json(command).decode()
            more = "" if len(text) <= _SHOWN_CHARACTERS else "…"
            yield f"{head} {text[:_SHOWN_CHARACTERS]}{more}"
