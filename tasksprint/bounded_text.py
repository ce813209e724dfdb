"""What others sent, cut to a length: texts that stand in the log and in events, and JSON.

Pure functions; an ellipsis stands for what is left out of a text.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["STDERR_FOLLOWS", "bounded_repr", "cut_middle", "keep_end", "on_one_line"]

# The first line of an error ends so if the end of a program's stderr stands beneath it.
STDERR_FOLLOWS = "its stderr ended with:"


def cut_middle(text: str, bytes_max: int) -> str:
    """Return a text; without its middle if it has more bytes of UTF-8 than `bytes_max`."""
    data = text.encode(errors="replace")
    if len(data) <= bytes_max:
        return text
    half = bytes_max // 2
    first, last = data[:half], data[-half:]
    return f"{first.decode(errors='ignore')} … {last.decode(errors='ignore')}"


def keep_end(text: str, bytes_max: int) -> str:
    """Return the end of a text; it begins with a whole line if one begins near enough."""
    data = text.encode(errors="replace")
    if len(data) <= bytes_max:
        return text
    end = data[-bytes_max:].decode(errors="ignore")
    first, newline, rest = end.partition("\n")
    return f"…\n{rest}" if newline and len(first) < bytes_max // 2 else f"… {end}"


def on_one_line(error: str, characters_max: int) -> str:
    """Return an error's first line, and the last line of the stderr beneath it, if any.

    The last line of stderr mostly names the cause.
    """
    first, _, rest = error.partition("\n")
    first = first.rstrip()
    if not first.endswith(STDERR_FOLLOWS):
        return _cut(first, characters_max)
    last = rest.strip().rpartition("\n")[2].strip()
    if not last:
        return _cut(first.removesuffix(STDERR_FOLLOWS).rstrip("; "), characters_max)
    head = _cut(first, characters_max // 2 if len(last) > characters_max // 2 else characters_max)
    return f"{head} {_cut(last, max(characters_max - len(head) - 1, 1))}"


def _cut(text: str, characters_max: int) -> str:
    return text if len(text) <= characters_max else text[: characters_max - 1] + "…"


def bounded_repr(value: object, characters_max: int = 50) -> str:
    """Return the beginning of the `repr` of what came as JSON, however deeply it is nested.

    `repr` itself fails where somebody sends a thousand brackets. Here each level takes a
    character at least, so no more levels are looked at than are shown.
    """
    members: Iterable[tuple[str, object]]
    if type(value) is list:
        text, end, members = "[", "]", (("", member) for member in value)
    elif type(value) is dict:
        text, end = "{", "}"
        members = ((f"{name!r}: ", member) for name, member in value.items())
    else:
        return repr(value)[:characters_max]
    separator = ""
    for name, member in members:
        if len(text) >= characters_max:
            break
        text += separator + name
        text += bounded_repr(member, max(characters_max - len(text), 0))
        separator = ", "
    return (text + end)[:characters_max]
