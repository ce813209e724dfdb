"""`restore`: the data directory of a new cluster of one, made from a backup.

The state is that of the backup; the cluster has a name of its own and its member a new
incarnation, as after `recover`. Everything is made in a folder of the data directory. Only the
finished store gets the name by which a coordinator looks for it. So a crash leaves nothing
that would be served, and the next try begins anew.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import time
from pathlib import Path
from typing import Any

from tasksprint.asking.rota import check_replica_id
from tasksprint.consensus import Founding, Member, encode_founding
from tasksprint.coordination.schedule import Schedule
from tasksprint.coordination.state_rows import digest_row
from tasksprint.durable_files import sync_directory
from tasksprint.errors import EXIT_OK, DiskFull, SettingsError, StoreError
from tasksprint.ids import ReplicaId, Slot
from tasksprint.net.addresses import parse_address
from tasksprint.next_steps import program_command
from tasksprint.process.clock import wall_ms
from tasksprint.process.directories import private_directory
from tasksprint.process.environment import settings_from_environment
from tasksprint.process.terminal import print_answer
from tasksprint.release import THIS_RELEASE
from tasksprint.rescue.recover import ago, new_cluster, new_incarnation
from tasksprint.settings import Settings
from tasksprint.store.backup_file import BackupReader, check_backup
from tasksprint.store.database import DirectoryLock
from tasksprint.store.records import AppliedPoint, Commit
from tasksprint.store.replica_store import ReplicaStore
from tasksprint.store.vital import DATABASE_FILE

__all__ = ["refuse_half_restored", "run_restore"]

# The folder in which a store is made.
_WORKSHOP = "restoring"
_LOCK = "restore.lock"


def run_restore(options: argparse.Namespace) -> int:
    """Carry out `restore`."""
    check_replica_id(options.id, "--id")
    address = options.advertise or options.listen
    parse_address(address)
    settings = settings_from_environment()
    data_dir, path = Path(options.data_dir), Path(options.file)
    _check_empty(data_dir)
    checked = check_backup(path)
    if checked.problems:
        more = f"; and {len(checked.problems) - 1} more" if len(checked.problems) > 1 else ""
        raise StoreError(checked.problems[0] + more, hint="use another backup")
    head, contents = checked.head, checked.contents
    # Before anything is made.
    THIS_RELEASE.find_rules(head.get("rules") or 1, f"the backup {str(path)!r}")
    private_directory(data_dir)
    lock = DirectoryLock(data_dir, _LOCK)
    try:
        _check_empty(data_dir)
        shutil.rmtree(data_dir / _WORKSHOP, ignore_errors=True)
        try:
            cluster, schedule = _make_store(
                path, data_dir / _WORKSHOP, ReplicaId(options.id), address, settings
            )
        except DiskFull as error:
            # The unfinished files take space that something else may need.
            shutil.rmtree(data_dir / _WORKSHOP, ignore_errors=True)
            hint = "free some space and restore the backup again"
            raise DiskFull(error.args[0], hint=hint) from error
        os.replace(data_dir / _WORKSHOP / DATABASE_FILE, data_dir / DATABASE_FILE)
        sync_directory(data_dir)
        shutil.rmtree(data_dir / _WORKSHOP, ignore_errors=True)
        (data_dir / _LOCK).unlink()
    finally:
        lock.release()
    jobs, running = len(schedule.jobs()), len(schedule.running_jobs())
    told: dict[str, Any] = {
        "cluster": cluster,
        "from_cluster": head["cluster"],
        "replica": options.id,
        "address": address,
        "slot": head["slot"],
        "wall_ms": contents.wall_ms,
        "jobs": jobs,
        "jobs_running": running,
        "archives": len(checked.archives),
    }
    then = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(contents.wall_ms / 1000))
    text = (
        f"restored cluster {head['cluster']} as of slot {head['slot']} ({then}, "
        f"{ago(contents.wall_ms)}) as the new cluster {cluster} of replica {options.id} "
        f"alone: {jobs} jobs ({running} running), {len(checked.archives)} archives\n"
        "lost: everything that was acknowledged after that slot\n"
        f"start it: {program_command('coordinator')} --id {options.id} --listen {options.listen}"
        f"{f' --advertise {address}' if address != options.listen else ''} "
        f"--data-dir {options.data_dir}\n"
        "more members: start each with a new id, an empty data directory and "
        f"--join {address}, then: {program_command('member', 'add')} ID=HOST:PORT"
    )
    print_answer(told, [text], as_json=options.json)
    return EXIT_OK


def refuse_half_restored(data_dir: Path) -> None:
    """Raise `SettingsError` for a directory that a restore didn't finish.

    A coordinator would found an empty cluster there.
    """
    is_begun = (data_dir / _WORKSHOP).exists() or (data_dir / _LOCK).exists()
    if is_begun and not (data_dir / DATABASE_FILE).exists():
        raise SettingsError(
            f"data directory {str(data_dir)!r} holds a restore that was interrupted",
            hint="restore the backup again: tasksprint restore FILE --data-dir …",
        )


def _check_empty(data_dir: Path) -> None:
    try:
        found = sorted(each.name for each in data_dir.iterdir())
    except FileNotFoundError:
        return
    except NotADirectoryError:
        raise SettingsError(f"{str(data_dir)!r} is not a directory") from None
    found = [name for name in found if name not in (_WORKSHOP, _LOCK)]
    if found:
        raise SettingsError(
            f"data directory {str(data_dir)!r} is not empty: it has {found[0]!r}",
            hint="name a new one; nothing was changed",
        )


def _make_store(
    path: Path, folder: Path, me: ReplicaId, address: str, settings: Settings
) -> tuple[str, Schedule]:
    """Make a store out of a backup that was checked; its file is whole when this returns."""
    made = ReplicaStore.open(folder, me, now_ms=wall_ms(), settings=settings)
    with contextlib.closing(made) as store:
        with BackupReader(path) as reader:
            head = reader.head
            _take(reader, store, AppliedPoint(head["slot"], head["digest"]))
        former = str(head["cluster"])
        schedule = Schedule(
            cluster=former,
            members=(me,),
            rules=THIS_RELEASE.find_rules(head.get("rules") or 1, "the backup"),
            mirror=store if store.applied.slot else None,
        )
        cluster = new_cluster()
        # Nobody is retired. Nothing that the former members said counts in this cluster, and no
        # ballot of theirs is in its store. So their ids are as good as others.
        founding = Founding(
            cluster,
            (Member(me, new_incarnation(), address),),
            origins=(*(str(origin) for origin in head["origins"]), former),
            rules=schedule.rules.version,
        )
        rows = schedule.found_anew(cluster, (me,))
        applied = AppliedPoint(schedule.applied_slot, schedule.digest)
        store.begin_anew(encode_founding(founding), cluster, Commit(rows=rows, applied=applied))
        store.close_whole()
    with (folder / DATABASE_FILE).open("rb") as file:
        os.fsync(file.fileno())
    return cluster, schedule


def _take(reader: BackupReader, store: ReplicaStore, applied: AppliedPoint) -> None:
    """Put everything of a backup into an empty store."""
    store.begin_copy()
    while (record := reader.next()).kind != "end":
        content = reader.content(record)
        if record.kind == "rows":
            store.add_copied(record.fields["table"], content)
        elif record.kind == "archive":
            store.put_blob(record.fields["sha256"], content)
    if not applied.slot:
        store.drop_copy()
        return
    row = digest_row(Slot(applied.slot), applied.digest)
    if store.read_copied(row.table, row.key) != row:
        raise reader.damage("its rows aren't of the state that it names")
    store.install_copy(applied)
