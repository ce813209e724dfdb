"""Counting CPUs and memory, from sample files of real systems."""

from __future__ import annotations

import os

from tasksprint.process.resources import (
    Limits,
    Resources,
    decide,
    measure,
    parse_cpu_max,
    parse_cpu_quota,
    parse_memberships,
    parse_memory,
    parse_mounts,
    read_limits,
)

MIB = 1024 * 1024
GIB = 1024 * MIB

NONE = Limits(None, None)

# systemd on a machine with version 2 only.
V2 = {
    "/proc/self/cgroup": "0::/user.slice/user-1000.slice/session-3.scope\n",
    "/proc/self/mountinfo": (
        "24 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
        "31 24 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
    ),
    "/sys/fs/cgroup/user.slice/cpu.max": "150000 100000\n",
    "/sys/fs/cgroup/user.slice/memory.max": "max\n",
    "/sys/fs/cgroup/user.slice/user-1000.slice/cpu.max": "max 100000\n",
    "/sys/fs/cgroup/user.slice/user-1000.slice/memory.max": f"{2 * GIB}\n",
    "/sys/fs/cgroup/user.slice/user-1000.slice/session-3.scope/cpu.max": "400000 100000\n",
    "/sys/fs/cgroup/user.slice/user-1000.slice/session-3.scope/memory.max": f"{3 * GIB}\n",
}

# Docker with version 1: the mounts show the container's subtree, the membership the host's.
V1 = {
    "/proc/self/cgroup": (
        "11:memory:/docker/0123abc\n4:cpu,cpuacct:/docker/0123abc\n"
        "1:name=systemd:/docker/0123abc\n"
    ),
    "/proc/self/mountinfo": (
        "700 699 0:30 /docker/0123abc /sys/fs/cgroup/cpu,cpuacct ro master:11 - "
        "cgroup cgroup rw,cpu,cpuacct\n"
        "701 699 0:31 /docker/0123abc /sys/fs/cgroup/memory ro master:15 - "
        "cgroup cgroup rw,memory\n"
    ),
    "/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "250000\n",
    "/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes": f"{512 * MIB}\n",
}

# A container with a namespace of version 2: everything looks like the root.
NAMESPACE = {
    "/proc/self/cgroup": "0::/\n",
    "/proc/self/mountinfo": "31 24 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup rw\n",
    "/sys/fs/cgroup/cpu.max": "50000 100000\n",
    "/sys/fs/cgroup/memory.max": "268435456\n",
}


def test_limits_of_version_2_are_the_smallest_on_the_way_up() -> None:
    assert read_limits(V2.get) == Limits(1.5, 2 * GIB)


def test_limits_of_version_1_in_a_container() -> None:
    assert read_limits(V1.get) == Limits(2.5, 512 * MIB)


def test_limits_in_a_namespace() -> None:
    assert read_limits(NAMESPACE.get) == Limits(0.5, 256 * MIB)


def test_group_outside_the_namespace_is_read_from_its_top() -> None:
    files = {**NAMESPACE, "/proc/self/cgroup": "0::/../other\n"}
    assert read_limits(files.get) == Limits(0.5, 256 * MIB)


def test_no_control_groups_are_no_limits() -> None:
    assert read_limits(lambda path: None) == NONE
    assert read_limits(lambda path: "nonsense: -\n::\n") == NONE


def test_memberships_and_mounts() -> None:
    assert parse_memberships(V1["/proc/self/cgroup"]) == {
        "memory": "/docker/0123abc",
        "cpu": "/docker/0123abc",
        "cpuacct": "/docker/0123abc",
        "name=systemd": "/docker/0123abc",
    }
    # A path may hold colons; a mount point may hold spaces.
    assert parse_memberships("0::/a:b/c\n") == {"": "/a:b/c"}
    mounts = parse_mounts("31 24 0:26 / /mnt/my\\040groups rw - cgroup2 cgroup2 rw\n")
    assert mounts == [(2, frozenset(), "/", "/mnt/my groups")]


def test_single_values() -> None:
    assert parse_cpu_max("max 100000") is None
    assert parse_cpu_max("200000 100000\n") == 2.0
    assert parse_cpu_max("200000") == 2.0
    assert parse_cpu_max("") is parse_cpu_max(None) is parse_cpu_max("x y") is None
    assert parse_cpu_quota("-1\n", "100000\n") is None
    assert parse_cpu_quota("50000\n", "100000\n") == 0.5
    assert parse_cpu_quota("50000\n", None) is None
    assert parse_memory("9223372036854771712\n") is None
    assert parse_memory("max\n") is parse_memory(None) is None
    assert parse_memory("4096\n") == 4096


def count(
    *,
    cpus: int = 8,
    affinity: int | None = 8,
    limits: Limits = NONE,
    available: int = 16 * GIB,
    nodes: int | None = None,
) -> Resources:
    return decide(
        cpu_count=cpus,
        affinity=affinity,
        limits=limits,
        memory_total=32 * GIB,
        memory_available=available,
        nodes=nodes,
    )


def test_smallest_count_of_cpus_wins_and_all_are_told() -> None:
    found = count(affinity=4, limits=Limits(2.0, None))
    assert found == Resources(
        cpus=2,
        memory_bytes=16 * GIB,
        nodes=2,
        how="2 nodes: 8 CPUs, affinity 4, cgroup quota 2.0, 16384 of 32768 MiB free",
    )
    assert count(affinity=4).cpus == 4
    assert count(affinity=None).cpus == 8


def test_part_of_a_cpu_is_rounded_down_but_one_node_runs_anywhere() -> None:
    assert count(limits=Limits(3.7, None)).nodes == 3
    found = count(cpus=1, affinity=1, limits=Limits(0.5, None))
    assert found.cpus == found.nodes == 1
    assert found.how.startswith("1 node: 1 CPU, affinity 1, cgroup quota 0.5")


def test_little_memory_means_fewer_nodes() -> None:
    found = count(limits=Limits(None, 384 * MIB))
    assert (found.cpus, found.nodes, found.memory_bytes) == (8, 3, 384 * MIB)
    assert found.how == (
        "3 nodes: 8 CPUs, affinity 8, 16384 of 32768 MiB free, cgroup memory 384 MiB, "
        "memory for 3 at 128 MiB each"
    )
    assert count(available=10 * MIB).nodes == 1


def test_operators_number_of_nodes_is_taken_and_told() -> None:
    found = count(nodes=20)
    assert found.nodes == 20
    assert found.how.startswith("20 nodes: 8 CPUs")
    assert found.how.endswith("number of nodes as asked")


def test_this_machine_can_be_measured() -> None:
    found = measure()
    assert 1 <= found.nodes <= found.cpus <= (os.cpu_count() or 1)
    assert found.memory_bytes > 0
    assert found.how.startswith(f"{found.nodes} node")
