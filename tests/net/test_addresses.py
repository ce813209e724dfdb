"""Addresses as text."""

from __future__ import annotations

import pytest

from tasksprint.errors import SettingsError
from tasksprint.net.addresses import format_address, host_of, parse_address


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [("127.0.0.1:7070", "127.0.0.1", 7070), ("[::1]:0", "::1", 0), ("lab1:65535", "lab1", 65535)],
)
def test_address_is_parsed_and_formatted_back(text: str, host: str, port: int) -> None:
    assert parse_address(text) == (host, port)
    assert format_address(host, port) == text


@pytest.mark.parametrize(
    "text",
    ["", "7070", "host", "host:", ":7070", "host:x", "host:65536", "host:" + "1" * 5_000],
)
def test_what_is_no_address_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_address(text)
    assert str(caught.value) == (
        f"bad address {text!r}: expected host:port with a port of 0 to 65535; "
        "write it like 127.0.0.1:7070"
    )


def test_ipv6_without_brackets_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"an IPv6 host must stand in brackets; write \[::1\]"):
        parse_address("::1:7070")


@pytest.mark.parametrize(
    ("authority", "host"),
    [
        ("Lab1:7070", "lab1"),
        ("lab1", "lab1"),
        ("[::1]:7070", "::1"),
        ("[::1]", "::1"),
        ("", ""),
        ("127.0.0.1:1, b", ""),
        ("a b", ""),
        ("a:x", ""),
        ("[::1", ""),
    ],
)
def test_host_of_a_host_header(authority: str, host: str) -> None:
    assert host_of(authority) == host
