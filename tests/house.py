"""`python -m tests.house` draws the package from its imports into CONTRIBUTING.md.

Floor by floor; each room is a folder: its name, what it is for, and the rooms that it
imports from. Floors are those of `tests/test_tidy.py`. Nothing that changes with each
commit, such as numbers of lines, stands in the drawing.
"""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

from tests.test_tidy import FLOORS, ROOT, folder_of, imports_of, modules, name_of

__all__ = ["PAGE", "draw", "with_drawing"]

PAGE = ROOT / "CONTRIBUTING.md"
_BEGIN, _END = "<!-- drawn by python -m tests.house -->\n```text\n", "```\n<!-- end -->\n"
_WIDTH = 96
_ROLES = ("roles/coordinator", "roles/client")
_ROOMS = (*_ROLES, *reversed(FLOORS))
_SAYS = {
    "entry": "`python -m tasksprint`, and the one file",
    "cli": "what people type: starts roles, asks a cluster",
    "roles/coordinator": "one coordinator process: puts replica, state machine and hosts together",
    "roles/client": "one client process: puts workbench, nodes and values together",
    "roles": "what both share, and `node.py`",
    "rescue": "backup, restore, recover, log skip: on the files of a coordinator",
    "asking": "finds the coordinator that leads, and asks it",
    "store": "all that is SQL, and files that outlive a crash",
    "net": "HTTP on both sides, streams between replicas, keys",
    "process": "starts, feeds, measures and stops programs",
    "sdk": "what users import; standard library alone",
    "hosting": "core, one for each replica, with a clock: users' schedulers, what replicas claim",
    "consensus": "core: multi-Paxos for one replica",
    "coordination": "core: the replicated state machine",
    "execution": "core: a client's state machine",
    "protocol": "core: bytes of lines and frames to messages, and back",
    "words": "tasksprint/*.py: small types, errors, settings, JSON; imported by all",
}


def draw() -> str:
    """Return the house as text, the roof first."""
    rooms: dict[int, list[str]] = {}
    for room, floor in FLOORS.items():
        rooms.setdefault(floor, []).append(room)
    # The roles' own folders don't know each other; what they share lies below both.
    rows = [rooms[floor] for floor in sorted(rooms, reverse=True)]
    rows.insert(rows.index(["roles"]), [*_ROLES])
    used = _imports()
    lines: list[str] = []
    for side_by_side in rows:
        widths = _shares(len(side_by_side))
        cells = [
            _room(room, used[room], width)
            for room, width in zip(side_by_side, widths, strict=True)
        ]
        lines.append("+" + "+".join("-" * width for width in widths) + "+")
        for row in range(max(map(len, cells))):
            parts = [
                (cell[row] if row < len(cell) else "").ljust(width)
                for cell, width in zip(cells, widths, strict=True)
            ]
            lines.append("|" + "|".join(parts) + "|")
    lines.append("+" + "-" * _WIDTH + "+")
    return "\n".join(lines) + "\n"


def _shares(count: int) -> list[int]:
    """Return the widths of so many rooms side by side."""
    inner = _WIDTH - (count - 1)
    return [inner // count + (1 if number < inner % count else 0) for number in range(count)]


def _room(room: str, used: set[str], width: int) -> list[str]:
    wide = width - 2
    below = ", ".join(each for each in _ROOMS if each in used and each != "words")
    is_folder = (ROOT / "tasksprint" / room).is_dir()
    lines = [f"{room}/" if is_folder else room, *textwrap.wrap(_SAYS[room], wide)]
    if below:
        lines += textwrap.wrap(f"uses {below}", wide)
    return [f" {line}" for line in lines]


def _imports() -> dict[str, set[str]]:
    """Return the rooms that each room imports from, below it."""
    used: dict[str, set[str]] = {room: set() for room in _ROOMS}
    for path in modules():
        room = _room_of(name_of(path))
        if name_of(path) == "tasksprint":
            continue  # Hands on the SDK's names, on first use.
        for _, name in imports_of(path):
            if name.partition(".")[0] == "tasksprint" and _room_of(name) != room:
                used[room].add(_room_of(name))
    return used


def _room_of(name: str) -> str:
    folder = "/".join(name.split(".")[1:3])
    return folder if folder in _ROLES else folder_of(name)


def with_drawing(text: str) -> str:
    """Return a page's text with the drawing of now between its marks."""
    before, begin, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    assert begin and end, f"the page has no {_BEGIN!r} … {_END!r}"
    return before + begin + draw() + end + after


def main() -> int:
    page = Path(PAGE)
    page.write_text(with_drawing(page.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
