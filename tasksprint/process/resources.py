"""How many CPUs and how much memory this process may really use, and how that was counted.

In a container and under taskset the machine's number of CPUs is wrong. So this takes the
smallest of three counts: all CPUs, the CPUs that this process may run on, and the quota of its
control groups (version 1 or 2, its own and every enclosing one).

The functions `parse_…` and `decide` are pure; `measure` reads this machine.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped, unused-ignore]

__all__ = ["Limits", "Resources", "decide", "measure", "read_limits"]

MIB = 1024 * 1024
# Memory that one more node needs at least; an idle Python with NumPy takes about 30 MiB.
NODE_MEMORY_BYTES = 128 * MIB
# Control groups of version 1 say "no limit" with a number near 2**63.
UNLIMITED_BYTES = 1 << 60


@dataclass(frozen=True, slots=True)
class Resources:
    """The resources that this process may use."""

    cpus: int  # whole CPUs, at least 1
    memory_bytes: int
    nodes: int  # how many nodes to start: one for each CPU, as far as memory allows
    how: str  # how that was counted, for people


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of the control groups; None: they set no limit."""

    cpu_quota: float | None
    memory_bytes: int | None


def measure(nodes: int | None = None) -> Resources:
    """Count what this process may use on this machine, now.

    Args:
        nodes: As many as the operator asked for; None: as many as fit.
    """
    affinity: int | None = None
    if hasattr(os, "sched_getaffinity"):
        affinity = len(os.sched_getaffinity(0))
    memory = psutil.virtual_memory()
    return decide(
        cpu_count=psutil.cpu_count(logical=True) or 1,
        affinity=affinity,
        limits=read_limits(_read),
        memory_total=memory.total,
        memory_available=memory.available,
        nodes=nodes,
    )


def decide(
    *,
    cpu_count: int,
    affinity: int | None,
    limits: Limits,
    memory_total: int,
    memory_available: int,
    nodes: int | None = None,
) -> Resources:
    """Return the smallest of all counts, and a sentence that names each of them."""
    counts = [cpu_count]
    said = [f"{_count(cpu_count, 'CPU')}"]
    if affinity is not None:
        counts.append(affinity)
        said.append(f"affinity {affinity}")
    if limits.cpu_quota is not None:
        # Rounded down: a node more than the quota makes all of them stall in turn.
        counts.append(int(limits.cpu_quota))
        said.append(f"cgroup quota {limits.cpu_quota:.1f}")
    cpus = max(1, min(counts))

    memory = min(memory_total, memory_available)
    said.append(f"{memory_available // MIB} of {memory_total // MIB} MiB free")
    if limits.memory_bytes is not None and limits.memory_bytes < memory_total:
        memory = min(memory, limits.memory_bytes)
        said.append(f"cgroup memory {limits.memory_bytes // MIB} MiB")

    if nodes is not None:
        said.append("number of nodes as asked")
    else:
        fitting = memory // NODE_MEMORY_BYTES
        nodes = max(1, min(cpus, fitting))
        if fitting < cpus:
            said.append(f"memory for {max(1, fitting)} at {NODE_MEMORY_BYTES // MIB} MiB each")
    return Resources(
        cpus=cpus,
        memory_bytes=memory,
        nodes=nodes,
        how=f"{_count(nodes, 'node')}: " + ", ".join(said),
    )


def read_limits(read: Callable[[str], str | None]) -> Limits:
    """Return the limits of this process's control groups.

    Args:
        read: Returns the text of a file, or None if it can't be read.
    """
    quotas: list[float] = []
    memories: list[int] = []
    memberships = parse_memberships(read("/proc/self/cgroup") or "")
    for version, controllers, root, mount in parse_mounts(read("/proc/self/mountinfo") or ""):
        for controller in ("cpu", "memory"):
            if version == 2:
                member = memberships.get("")
            elif controller in controllers:
                member = memberships.get(controller)
            else:
                continue
            for directory in _enclosing(mount, root, member):
                if controller == "memory":
                    memory = _memory_limit(read, directory, version)
                    if memory is not None:
                        memories.append(memory)
                else:
                    quota = _cpu_quota(read, directory, version)
                    if quota is not None:
                        quotas.append(quota)
    return Limits(cpu_quota=min(quotas, default=None), memory_bytes=min(memories, default=None))


def parse_memberships(text: str) -> dict[str, str]:
    """Parse /proc/self/cgroup: controller ("" for version 2) -> path of the group."""
    result: dict[str, str] = {}
    for line in text.splitlines():
        _number, _, rest = line.partition(":")
        controllers, separator, path = rest.partition(":")
        if separator:
            for controller in controllers.split(","):
                result.setdefault(controller, path)
    return result


def parse_mounts(text: str) -> list[tuple[int, frozenset[str], str, str]]:
    """Parse /proc/self/mountinfo: (version, controllers, root, mount point) of each hierarchy."""
    result = []
    for line in text.splitlines():
        before, separator, after = line.partition(" - ")
        fields, kinds = before.split(), after.split()
        if not separator or len(fields) < 6 or len(kinds) < 3:
            continue
        root, mount = _unescape(fields[3]), _unescape(fields[4])
        if kinds[0] == "cgroup2":
            result.append((2, frozenset[str](), root, mount))
        elif kinds[0] == "cgroup":
            result.append((1, frozenset(kinds[2].split(",")), root, mount))
    return result


def parse_cpu_max(text: str | None) -> float | None:
    """Parse version 2's cpu.max, "200000 100000" or "max 100000", to CPUs."""
    fields = (text or "").split()
    if not fields or fields[0] == "max":
        return None
    try:
        quota, period = int(fields[0]), int(fields[1]) if len(fields) > 1 else 100_000
    except ValueError:
        return None
    return quota / period if quota > 0 and period > 0 else None


def parse_cpu_quota(quota_text: str | None, period_text: str | None) -> float | None:
    """Parse version 1's cpu.cfs_quota_us (-1: none) and cpu.cfs_period_us to CPUs."""
    if quota_text is None or period_text is None:
        return None
    return parse_cpu_max(f"{quota_text.strip()} {period_text.strip()}")


def parse_memory(text: str | None) -> int | None:
    """Parse memory.max or memory.limit_in_bytes; None: no limit."""
    try:
        limit = int((text or "").strip())
    except ValueError:
        return None  # "max", or no such file
    return limit if 0 < limit < UNLIMITED_BYTES else None


def _cpu_quota(read: Callable[[str], str | None], directory: str, version: int) -> float | None:
    if version == 2:
        return parse_cpu_max(read(f"{directory}/cpu.max"))
    return parse_cpu_quota(
        read(f"{directory}/cpu.cfs_quota_us"), read(f"{directory}/cpu.cfs_period_us")
    )


def _memory_limit(read: Callable[[str], str | None], directory: str, version: int) -> int | None:
    name = "memory.max" if version == 2 else "memory.limit_in_bytes"
    return parse_memory(read(f"{directory}/{name}"))


def _enclosing(mount: str, root: str, member: str | None) -> list[str]:
    """Return the directories of a group and of all that enclose it, innermost first.

    In a container the mount may show a subtree (`root`) of the hierarchy, while
    /proc/self/cgroup names the group from the top of it, or from a namespace's.
    """
    path = member or "/"
    if root != "/" and (path == root or path.startswith(root + "/")):
        path = path[len(root) :]
    parts = [part for part in path.split("/") if part]
    if ".." in parts:  # The group is outside what this namespace may see.
        parts = []
    return ["/".join([mount.rstrip("/"), *parts[:count]]) for count in range(len(parts), -1, -1)]


def _unescape(text: str) -> str:
    """Undo the octal escapes of mountinfo."""
    return text.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
