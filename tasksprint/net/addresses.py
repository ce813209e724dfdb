"""Addresses as text, and the socket options that make a broken network show.

An address is "host:port", with an IPv6 host in brackets. Resolving names is
left to the loop and the operating system.
"""

from __future__ import annotations

import os
import re
import socket

from tasksprint.errors import SettingsError

__all__ = ["cause_of", "format_address", "host_of", "parse_address", "tune_socket"]

_PORT_DIGITS_MAX = 5
_AUTHORITY = re.compile(r"(?:\[([0-9A-Fa-f:.%]+)\]|([^\s:,\[\]]+))(?::[0-9]{0,5})?")


def parse_address(text: str) -> tuple[str, int]:
    """Return (host, port) of an address such as "127.0.0.1:7070" or "[::1]:7070".

    Raises:
        SettingsError: It isn't an address.
    """
    host, colon, port = text.strip().rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise SettingsError(
            f"bad address {text!r}: an IPv6 host must stand in brackets", hint="write [::1]:7070"
        )
    is_number = port.isascii() and port.isdigit() and len(port) <= _PORT_DIGITS_MAX
    if not colon or not host or not is_number or int(port) > 65535:
        raise SettingsError(
            f"bad address {text!r}: expected host:port with a port of 0 to 65535",
            hint="write it like 127.0.0.1:7070",
        )
    return host, int(port)


def format_address(host: str, port: int) -> str:
    """Return the text of an address; the inverse of `parse_address`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def host_of(authority: str) -> str:
    """Return the host in lower case of a `Host` header; "" if it isn't one host."""
    match = _AUTHORITY.fullmatch(authority)
    return (match[1] or match[2]).lower() if match else ""


def cause_of(error: OSError) -> str:
    """Return in a few words why the system refused, such as "connection refused"."""
    if error.errno is not None and error.errno > 0:
        return os.strerror(error.errno).lower()
    return (error.strerror or str(error)).lower()


def tune_socket(connection: socket.socket, *, unacknowledged_timeout_ms: int) -> None:
    """Make a TCP connection send at once and notice a cut network in seconds.

    Two cases: with bytes under way the kernel gives up after
    `unacknowledged_timeout_ms` (Linux; RFC 5482); without, keep-alive probes find out
    in about the same time. Options that a system lacks are left out: there a cut is
    noticed by the deadlines of requests and by the silence of a leader.
    """
    if connection.family not in (socket.AF_INET, socket.AF_INET6):
        return
    tcp = socket.IPPROTO_TCP
    connection.setsockopt(tcp, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    probes = 3
    interval_s = max(1, unacknowledged_timeout_ms // 1000 // (probes + 1))
    for name, value in (
        ("TCP_USER_TIMEOUT", unacknowledged_timeout_ms),
        ("TCP_KEEPIDLE", interval_s),
        ("TCP_KEEPALIVE", interval_s),  # macOS's name of TCP_KEEPIDLE
        ("TCP_KEEPINTVL", interval_s),
        ("TCP_KEEPCNT", probes),
    ):
        option = getattr(socket, name, None)
        if option is not None:
            connection.setsockopt(tcp, option, value)
