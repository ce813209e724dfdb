"""Records what a release decides: `python -m tests.releases.recording`, once after each release.

Builds the last release from git's history and lets it work: on a cluster of real
processes, with jobs of many kinds and clients that come and go, and in its own simulator, under
faults. Writes the logs, what the release's states were after each entry, and the schedulers
of the jobs, to `recorded-VERSION.json.xz`. What is compared with it later stands in
`test_recorded.py`.
"""

from __future__ import annotations

import json
import lzma
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tasksprint.consensus.batch import decode_batch, stands_alone
from tasksprint.consensus.founding import decode_founding
from tasksprint.consensus.membership import decode_membership_value
from tests.e2e.conftest import wait_until
from tests.packaging.standin import CHECKOUT
from tests.releases import applying, simulated
from tests.releases.building import Release, build, read_releases, sources_of
from tests.releases.stages import Stages, ask, command_of
from tests.torture.machines import Machines

__all__ = ["DIGEST_CHARACTERS", "path_of", "read_recorded"]

# Seeds whose logs together have all kinds of commands that simulated clusters know.
_SEEDS = (1, 2, 4, 6, 7, 9, 10, 12)
# As many of a digest as are kept: it can't be compressed.
DIGEST_CHARACTERS = 16
_JOBS = Path(__file__).parent / "jobs"
_TORTURE = Path(__file__).parents[1] / "torture" / "job"
_NODE = """#!/bin/sh
echo '{"ready":{}}'
while IFS= read -r line; do
  id=${line#'{"id":'} && echo "{\\"id\\":${id%%,*},\\"values\\":{\\"value\\":1}}"
done
"""


def path_of(release: Release) -> Path:
    """Return where a release's recording is kept."""
    return Path(__file__).parent / f"recorded-{release.version}.json.xz"


def read_recorded(release: Release) -> dict[str, Any]:
    """Return a release's logs by name."""
    logs: dict[str, Any] = json.loads(lzma.decompress(path_of(release).read_bytes()))
    return logs


def record_cluster(archive: Path, folder: Path) -> dict[str, Any]:
    """Return the log of three coordinators and two clients that have had some work."""
    schedulers: dict[int, str] = {}

    def submit(directory: Path, *options: str, **params: object) -> int:
        given = [f"--param={name}={json.dumps(value)}" for name, value in params.items()]
        said = ask(machines, archive, "submit", str(directory), "--json", *options, *given)
        job = int(json.loads(said)["job"])
        (path,) = directory.glob("scheduler.*")
        schedulers[job] = path.read_text(encoding="utf-8")
        return job

    def wait(job: int) -> None:
        ask(machines, archive, "result", str(job), "--wait", "--json", code=None)

    with Machines(
        folder, command=command_of(archive), coordinators=3, clients=2, nodes=3
    ) as machines:
        machines.start_all()
        wait_until(lambda: machines.client_states() == ["alive"] * 2, "both clients have joined")
        stages = Stages(machines, archive, stages=3, width=25, ms=5)
        schedulers[stages.job] = (_JOBS / "stages" / "scheduler.py").read_text(encoding="utf-8")
        stages.wait_for_middle(0)
        machines.kill("client-1")
        stages.open(0)
        stages.wait_for_middle(1)
        machines.start("client-1")
        machines.ask_to_end("client-2")
        machines.restart("client-2")
        stages.end()
        for number, kind in enumerate(("fan", "chain", "rounds", "dice")):
            job = submit(_TORTURE, f"--seed={number}", kind=kind, token=7, width=4, ms=1)
            wait(job)
        for kind in ("parts", "told", "fails", "slow", "crashes"):
            wait(submit(_JOBS / "odds", "--seed=3", kind=kind))
        wait(submit(_JOBS / "odds", "--seed=3", "--check-determinism", kind="unordered"))
        job = submit(_JOBS / "odds", "--seed=3", kind="waits")
        ask(machines, archive, "cancel", str(job))
        ask(machines, archive, "job", "forget", str(job))
        attached = folder / "attached"
        shutil.copytree(_JOBS / "odds", attached, ignore=shutil.ignore_patterns("node.py"))
        text = '{"name":"attached","node":"attached:hand","params":{"kind":""}}'
        (attached / "tasksprint.json").write_text(text, encoding="utf-8")
        job = submit(attached, "--seed=3", kind="fails")
        program = folder / "hand.sh"
        program.write_text(_NODE, encoding="utf-8")
        program.chmod(0o755)
        by_hand = ["node", "--exec", str(program), "--name", "hand"]
        where = ["--client", str(folder / "client-1")]
        node = subprocess.Popen(
            [*command_of(archive), *by_hand, *where],
            stdin=subprocess.DEVNULL,
            env=machines.environment,
        )
        wait(job)
        node.kill()
        node.wait()
        machines.end_all()
    return {**_read_log(folder / "coordinator-1" / "replica.db"), "schedulers": schedulers}


def _read_log(path: Path) -> dict[str, Any]:
    with sqlite3.connect(path) as database:
        ((blob,),) = database.execute("SELECT founding FROM header")
        rows = database.execute("SELECT slot, value FROM log ORDER BY slot").fetchall()
        ((applied, digest),) = database.execute("SELECT applied_slot, digest FROM progress")
    founding = decode_founding(blob)
    entries = []
    for slot, value in rows[:applied]:
        assert slot == len(entries) + 1, "the log was truncated"
        assert decode_membership_value(value) is None
        commands = decode_batch(value)
        texts = [command.decode("utf-8", "surrogateescape") for command in commands]
        entries.append([texts, None, True] if stands_alone(value) else [texts, None])
    members = [member.replica for member in founding.members]
    return {
        "cluster": founding.cluster,
        "members": members,
        "rules": founding.rules,
        "entries": entries,
        "last": digest,
    }


def main() -> None:
    """Record the last release."""
    release = read_releases()[-1]
    logs: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        checkout = sources_of(release, folder / "checkout")
        archive = folder / "tasksprint.pyz"
        build(checkout, archive, CHECKOUT / "wheels")
        logs["cluster"] = record_cluster(archive, folder / "cluster")
        for seed in _SEEDS:
            command = [sys.executable, str(Path(simulated.__file__)), str(seed)]
            done = subprocess.run(command, cwd=checkout, capture_output=True, check=True)
            logs[f"seed {seed}"] = json.loads(done.stdout)
        for name, log in logs.items():
            found = apply_elsewhere(archive, log)
            digests = [digest for digest, _ in found["digests"]]
            assert log.pop("digests", digests) == digests, name
            assert log.pop("last", digests[-1]) == digests[-1], name
            log["digests"] = [digest[:DIGEST_CHARACTERS] for digest in digests]
            print(f"{name}: {len(digests)} entries, {found['kinds']}")
    data = lzma.compress(json.dumps(logs).encode(), preset=9)
    path_of(release).write_bytes(data)
    print(f"{path_of(release).name}: {len(data)} bytes")


def apply_elsewhere(archive: Path, log: dict[str, Any]) -> dict[str, Any]:
    """Return what an archive's release makes of a log, in a process of its own."""
    done = subprocess.run(
        [sys.executable, str(Path(applying.__file__)), str(archive)],
        input=json.dumps(log).encode(),
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr.decode()
    found: dict[str, Any] = json.loads(done.stdout)
    return found


if __name__ == "__main__":
    main()
