"""Texts of users' programs, cut to a number of bytes: they stand in the log and in events.

Pure functions; what is left out is said by an ellipsis.
"""

from __future__ import annotations

__all__ = ["cut_middle", "keep_end"]


def cut_middle(text: str, bytes_max: int) -> str:
    """Return a text without its middle if it has more bytes of UTF-8 than that."""
    data = text.encode(errors="replace")
    if len(data) <= bytes_max:
        return text
    half = bytes_max // 2
    first, last = data[:half], data[-half:]
    return f"{first.decode(errors='ignore')} … {last.decode(errors='ignore')}"


def keep_end(text: str, bytes_max: int) -> str:
    """Return the end of a text, from the beginning of a line if one is near enough."""
    data = text.encode(errors="replace")
    if len(data) <= bytes_max:
        return text
    end = data[-bytes_max:].decode(errors="ignore")
    first, newline, rest = end.partition("\n")
    return f"…\n{rest}" if newline and len(first) < bytes_max // 2 else f"… {end}"
