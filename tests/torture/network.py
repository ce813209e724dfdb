"""A network of namespaces on this machine, which loses what it is told to lose.

Each host is a network namespace with one `eth0`; a bridge in the namespace of the caller
joins them, so that the caller reaches every host too. What goes from one host to another
is lost by writing a wrong hardware address for the target into the source's neighbour
table: packets leave, nobody takes them, and no process gets an error. That works in one
direction, needs no module of the kernel beyond veth and bridge, and no packet filter.

Needs root (CAP_NET_ADMIN, CAP_SYS_ADMIN) and iproute2; `why_not` says what is missing.
Names contain the id of this process, and what a process that is gone has left is removed.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator
from types import TracebackType

__all__ = ["Network", "cut", "mend", "why_not"]

_NOBODY = "02:00:00:00:00:fe"
_NAME = re.compile(r"\b(ts([0-9a-f]+)[a-z](?:-\d+|br))\b")
_numbers = iter("abcdefghijklmnopqrstuvwxyz")


class Network:
    """Hosts with numbers from 1 on; a context manager that removes all of it."""

    def __init__(self, hosts: Iterable[int]) -> None:
        self.hosts = list(hosts)
        # One letter for each network of this process: an interface's name has 15 at most.
        self._name = f"ts{os.getpid():x}{next(_numbers)}"
        self._subnet = ""
        # (source, target): how many faults want it lost.
        self._lost: Counter[tuple[int, int]] = Counter()

    # --- existence ---

    def __enter__(self) -> Network:
        _remove_leftovers()
        try:
            self._make()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _make(self) -> None:
        self._subnet = _free_subnet()
        bridge = f"{self._name}br"
        _ip("link", "add", bridge, "type", "bridge")
        _ip("addr", "add", f"{self._subnet}.254/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        for host in self.hosts:
            self._make_host(host)

    def _make_host(self, host: int) -> None:
        assert 0 < host < 250
        name = self.namespace(host)
        _ip("netns", "add", name)
        _ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
        _ip("link", "set", name, "master", f"{self._name}br", "up")
        _ip("-n", name, "link", "set", "lo", "up")
        _ip("-n", name, "addr", "add", f"{self.address(host)}/24", "dev", "eth0")
        _ip("-n", name, "link", "set", "eth0", "up")

    def add(self, host: int) -> None:
        """Have one more host."""
        assert host not in self.hosts
        self.hosts.append(host)
        self._make_host(host)

    def close(self) -> None:
        """Remove everything; the processes on it should have ended."""
        for host in self.hosts:
            _try_ip("netns", "del", self.namespace(host))
            # Gone with its namespace, unless a process keeps that.
            _try_ip("link", "del", self.namespace(host))
        _try_ip("link", "del", f"{self._name}br")

    # --- names ---

    def namespace(self, host: int) -> str:
        """Return the name of a host's namespace (and of its port at the bridge)."""
        return f"{self._name}-{host}"

    def address(self, host: int) -> str:
        """Return the IP address of a host."""
        return f"{self._subnet}.{host}"

    def command(self, host: int) -> list[str]:
        """Return what runs a command on a host; its process id is that of the command."""
        return ["ip", "netns", "exec", self.namespace(host)]

    # --- faults ---

    def lose(self, source: int, target: int) -> None:
        """Lose what goes from one host to another, until `pass_on` was called as often."""
        self._lost[source, target] += 1
        if self._lost[source, target] == 1:
            self._set(source, target)

    def pass_on(self, source: int, target: int) -> None:
        """Take back one `lose`."""
        assert self._lost[source, target] > 0
        self._lost[source, target] -= 1
        if self._lost[source, target] == 0:
            _try_ip(
                *("-n", self.namespace(source), "neigh", "del", self.address(target)),
                *("dev", "eth0"),
            )

    def heal(self) -> None:
        """Take back every `lose`, and plug in all cables."""
        for source, target in [pair for pair, count in self._lost.items() if count > 0]:
            self._lost[source, target] = 1
            self.pass_on(source, target)
        for host in self.hosts:
            self.plug(host, is_in=True)

    def plug(self, host: int, *, is_in: bool) -> None:
        """Plug a host's cable in or out."""
        _ip("link", "set", self.namespace(host), "up" if is_in else "down")

    def _set(self, source: int, target: int) -> None:
        _ip(
            *("-n", self.namespace(source), "neigh", "replace", self.address(target)),
            *("lladdr", _NOBODY, "nud", "permanent", "dev", "eth0"),
        )


def cut(network: Network, ones: Iterable[int], others: Iterable[int]) -> None:
    """Lose everything between two groups of hosts."""
    for one, other in _pairs(ones, others):
        network.lose(one, other)
        network.lose(other, one)


def mend(network: Network, ones: Iterable[int], others: Iterable[int]) -> None:
    """Take back `cut`."""
    for one, other in _pairs(ones, others):
        network.pass_on(one, other)
        network.pass_on(other, one)


def _pairs(ones: Iterable[int], others: Iterable[int]) -> Iterator[tuple[int, int]]:
    right = list(others)
    for one in ones:
        for other in right:
            yield one, other


def why_not() -> str | None:
    """Return why there can be no namespaces here; None: there can."""
    if shutil.which("ip") is None:
        return "iproute2 isn't installed (no command 'ip')"
    if os.geteuid() != 0:
        return "network namespaces need root (CAP_NET_ADMIN and CAP_SYS_ADMIN)"
    probe = f"ts{os.getpid():x}z-1"
    bridge = f"ts{os.getpid():x}zbr"
    try:
        _ip("netns", "add", probe)
        _ip("link", "add", probe, "type", "veth", "peer", "name", "eth0", "netns", probe)
        _ip("link", "add", bridge, "type", "bridge")
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", "") or str(error)
        return f"network namespaces can't be made here: {said.strip()}"
    finally:
        _try_ip("netns", "del", probe)
        _try_ip("link", "del", probe)
        _try_ip("link", "del", bridge)
    return None


def _ip(*arguments: str) -> str:
    done = subprocess.run(
        ["ip", *arguments], check=True, capture_output=True, text=True, timeout=20
    )
    return done.stdout


def _try_ip(*arguments: str) -> None:
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        _ip(*arguments)


def _free_subnet() -> str:
    taken = _ip("-4", "addr", "show") + _ip("-4", "route", "show")
    for number in range(256):
        subnet = f"10.213.{(os.getpid() + number) % 256}"
        if f"{subnet}." not in taken:
            return subnet
    raise OSError("no free network among 10.213.0.0/16")


def _remove_leftovers() -> None:
    """Remove what processes that were killed have left."""
    for name, pid in set(_NAME.findall(_ip("netns", "list") + _ip("link", "show"))):
        if not os.path.exists(f"/proc/{int(pid, 16)}"):
            _try_ip("netns", "del", name)
            _try_ip("link", "del", name)
