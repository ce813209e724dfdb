"""How a command gets the cluster that its options name."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from tasksprint.asking.cluster import Cluster
from tasksprint.asking.rota import parse_addresses
from tasksprint.net.keys import ClusterKey, open_key
from tasksprint.process.directories import state_directory
from tasksprint.process.environment import settings_from_environment

__all__ = ["ask_cluster", "key_of"]


def ask_cluster(
    run: Callable[[Cluster, argparse.Namespace], int], options: argparse.Namespace
) -> int:
    """Run a command with the cluster that it asks."""
    settings, key = settings_from_environment(), key_of(options)
    addresses = parse_addresses(options.coordinators)
    return run(Cluster(addresses, key, settings, name=options.cluster), options)


def key_of(options: argparse.Namespace) -> ClusterKey:
    """Return the key of the cluster; commands make none."""
    return open_key(options.key_file, state_dir=state_directory(), may_create=False)
