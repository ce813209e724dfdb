"""A failed attempt at a task, for people: in one line, and with all that is known of it.

The facts are those of a row of the table "failures" (`coordination/failures.py`). Text of
users' programs comes out as it is; `process/terminal.py` makes it harmless when it is printed.
"""

from __future__ import annotations

import re
from typing import Any

from tasksprint.bounded_text import STDERR_FOLLOWS, on_one_line

__all__ = ["failure_block", "failure_line"]

_INDENT = "  "
_PLACE = re.compile(r'^\s*File "([^"\n]*)", line (\d+), in (.*)$', re.MULTILINE)
_LINE_CHARACTERS_MAX = 300


def failure_line(failure: dict[str, Any]) -> str:
    """Return one line about a failed task: which, where, with which error, and what follows."""
    error = on_one_line(failure["error"], _LINE_CHARACTERS_MAX)
    detail = failure["detail"]
    places = _PLACE.findall(detail.get("traceback") or "")
    where = ""
    if places:
        file, line, name = places[-1]
        where = f" ({file.rpartition('/')[2]}:{line} in {name})"
    then = "given up" if failure["final"] else "it is tried again"
    return (
        f"task {failure['tid']} {failure['name']!r} failed, {_attempt(failure)}: "
        f"{error}{where}; {then}"
    )


def failure_block(failure: dict[str, Any]) -> str:
    """Return all that is known of a failed attempt, on indented lines.

    They stand beneath a sentence with the task and its error.
    """
    detail = failure["detail"]
    facts = [f"task {failure['tid']} {failure['name']!r}, {_attempt(failure)}"]
    if (run_ms := detail.get("run_ms")) is not None:
        facts.append(f"after {run_ms / 1000:.3f} s")
    if (code := detail.get("exit_code")) is not None:
        facts.append(f"exit code {code}")
    if (signal := detail.get("signal")) is not None:
        facts.append(f"signal {signal}")
    if (spent := detail.get("out_of_memory")) is not None:
        facts.append("out of memory" if spent else "not out of memory")
    lines = [", ".join(facts) + ":"]
    if (traceback := detail.get("traceback")) is not None:
        lines += traceback.rstrip().splitlines()
    else:
        lines += failure["error"].rstrip().splitlines()
    stderr = (detail.get("stderr") or "").rstrip()
    if stderr and STDERR_FOLLOWS not in failure["error"]:
        lines.append(STDERR_FOLLOWS)
        lines += [_INDENT + line for line in stderr.splitlines()]
    return "\n".join([_INDENT + lines[0], *[2 * _INDENT + line for line in lines[1:]]])


def _attempt(failure: dict[str, Any]) -> str:
    host = f" ({failure['host']})" if failure["host"] else ""
    tries = failure["retries"] + 1
    counted = f"attempt {failure['attempt']}"
    if failure["attempt"] == failure["failures"] <= tries:
        counted += f" of {tries}"
    return f"{counted} on client {failure['cid']}{host}"
