"""A cluster of the last release becomes one of this checkout while a job runs on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.releases.stages import (
    Stages,
    command_of,
    heard_by,
    leave_no_trace,
    replace,
    undisturbed,
)
from tests.torture.machines import Machines

pytestmark = pytest.mark.long

COORDINATORS = ("coordinator-1", "coordinator-2", "coordinator-3")
CLIENTS = ("client-1", "client-2")
STAGES = 6
WIDTH = 150


def test_each_process_is_replaced_in_mid_job(
    old_archive: Path, new_archive: Path, tmp_path: Path
) -> None:
    """The job ends with the bytes of an undisturbed run of either release."""
    new = command_of(new_archive)
    with Machines(
        tmp_path / "cluster", command=command_of(old_archive), coordinators=3, clients=2, nodes=3
    ) as machines:
        machines.start_all()
        stages = Stages(machines, old_archive, stages=STAGES, width=WIDTH)
        for stage, name in enumerate((*COORDINATORS, *CLIENTS)):
            stages.wait_for_middle(stage)
            replace(machines, name, new)
            if name in COORDINATORS:
                heard_by(machines, name)
            stages.open(stage)
        stages.people = new_archive
        outcome = stages.end()
        leave_no_trace(machines)
    for archive in (old_archive, new_archive):
        found = undisturbed(tmp_path / archive.stem, archive, stages=STAGES, width=WIDTH)
        assert found == outcome
