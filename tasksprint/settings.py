"""Every tunable, with its reason and what goes wrong when it is too small or too large.

`Settings` is local to a process. `Rules` is part of the replicated state machine: every
replica must apply the same log by the same rules. So a value in it changes only with the
version of the rules.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["RULES", "RULES_BY_VERSION", "Rules", "Settings"]

KIB = 1024
MIB = 1024 * 1024
GIB = 1024 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Settings:
    """Tunables of one process; the defaults suit a handful of machines on one network."""

    # --- consensus ---

    # How often a leader shows that it lives. Smaller: more wake-ups when idle.
    # Larger: the election timeouts must grow with it.
    heartbeat_interval_ms: int = 100
    # A follower that heard nothing for a random time in this range asks the others.
    # Too small: a busy machine (a long garbage collection, a slow fsync) loses its
    # leader for nothing. Too large: a silent leader is missed for longer.
    election_timeout_min_ms: int = 700
    election_timeout_max_ms: int = 1_300
    # A leader says with its next entry what is chosen. If no entry follows, it says so after
    # this (0: at once). Smaller: one more message, and turn of each follower, for a lone entry.
    # Larger: followers apply, and their schedulers run, later by as much.
    chosen_notice_delay_ms: int = 5
    # A quorum doesn't need every follower. The others get the entries of this span together, at
    # its end (0: at once, like the rest). Smaller: more messages, writes and turns for them.
    # Larger: when a follower that is needed fails or hesitates, commands wait for longer.
    spare_delay_ms: int = 5
    # Slots that a leader may have under way. Larger hides a slow follower's latency;
    # smaller makes bigger batches. Batches form behind the running write anyway.
    pipeline_slots_max: int = 8
    # Bytes of commands in one entry. Bounds the time of one apply step and one write.
    entry_bytes_max: int = 1 * MIB
    # One command. It may be larger than entry_bytes_max: a report with many values, a client
    # that joins with many results. Must leave room in a frame beside log_window_bytes_max: a
    # promise carries all that is open.
    command_bytes_max: int = 24 * MIB
    # Commands that may wait for a slot; more are refused ("busy"), never lost silently.
    waiting_commands_max: int = 100_000
    # Chosen entries kept in memory for followers that lag a little; older ones are
    # read back from the store.
    log_window_slots: int = 1_024
    # And so many bytes of them: full entries in all these slots would be a gigabyte. It also
    # bounds the entries that a lagging replica holds open and hands over in one promise.
    log_window_bytes_max: int = 64 * MIB
    # Applied entries that stay in the log, for replicas that lag a little. These are about 20 s
    # of a busy log, or hours of an idle one. Smaller: a restarted replica needs a copy of the
    # whole state. Larger: a larger file.
    log_tail_slots: int = 20_000
    # And at most so many bytes of them: by then a copy of the state is mostly cheaper.
    log_tail_bytes_max: int = 64 * MIB
    # One piece of a copy of the state: rows and bytes. Smaller: more requests and more
    # transactions. Larger: the receiver's acknowledgements of new entries wait longer
    # behind its write.
    mirror_piece_rows: int = 5_000
    mirror_piece_bytes_max: int = 2 * MIB
    # A copy of the state is closed after the first span without a request for more of it, or at
    # the age of the second. Until then the replica that gives it can't begin its write-ahead
    # log anew. Too small: a slow receiver must begin again. Too large: that log grows.
    mirror_session_idle_ms: int = 10_000
    mirror_session_max_ms: int = 300_000
    # Bytes of entries in one catch-up message.
    catch_up_bytes_max: int = 4 * MIB
    # A new member votes once its chosen prefix is at most so many slots behind the
    # leader's. Too small: under load it never does. Too large: commands wait for it.
    learner_lag_slots_max: int = 64
    # A leader raises the rules of the log once all members have had newer ones for so long,
    # without a break. Too small: there is no way back for a new release that is found bad.
    # Too large: what a new release brings is late, unless somebody asks for it (`upgrade`).
    rules_settle_ms: int = 60_000
    # A leader hands over once its own writes were so long, in all, far slower than those of a
    # quorum of the others. Only writes of a quarter of this and more count. Too small: a
    # checkpoint or a busy machine changes the leader for nothing. Too large: should another
    # member fail, commands wait longer for a slow disk.
    slow_write_ms: int = 1_000
    # A replica that handed over leaves elections to the others for so long after its last slow
    # write. The time doubles with each hand-over, up to the second value. It stands again at
    # once if nobody leads for three election timeouts. Smaller: leadership comes back to a disk
    # that is slow now and then. Larger: a good machine is passed over for longer.
    hold_back_min_ms: int = 5_000
    hold_back_max_ms: int = 60_000
    # How long a request for catch-up or a retransmission waits for its answer.
    resend_interval_ms: int = 300

    # --- coordinator ---

    # Log time passes in steps of a tick. Smaller: more entries in an idle log.
    # Larger: deaths and timers are noticed later by as much.
    tick_interval_ms: int = 500
    # A poll of the view is answered after this at the latest, empty if need be; at most
    # a third of the liveness span (Rules.liveness_span_ms).
    view_poll_max_ms: int = 1_500
    # A scheduler on another replica may propose its answer after this: the leader's own may
    # be stuck.
    answer_grace_ms: int = 2_000
    # A scheduler that has not answered an event for so long is considered stuck.
    scheduler_answer_timeout_ms: int = 30_000
    # After so long without an answer, a scheduler is named as its job's obstacle. Smaller: a
    # handler that takes a moment is shown as one, too. Larger: people wonder for longer.
    silence_shown_ms: int = 2_000
    # Events that a scheduler may have unanswered in its pipe.
    scheduler_window_events: int = 2_000

    # --- client ---

    # A node must say that it is ready within this; slow interpreters on busy machines
    # need seconds.
    node_ready_timeout_ms: int = 30_000
    # Short tasks are written into a node's pipe ahead of need, up to this much measured
    # run time. Smaller: a node waits for the client between tasks. Larger: tasks are
    # stuck behind one that takes unexpectedly long.
    node_ahead_us: int = 10_000
    # A task that has run for so long gives up those behind it in the pipe to other nodes.
    node_stall_ms: int = 100
    # A short task that is no longer wanted may end by itself within this; then its node
    # is killed. Smaller: a cancelled job of no-op tasks costs a node's restart.
    node_stop_grace_ms: int = 200
    # The pause before a node is started again. It doubles if the node dies again and again.
    node_restart_pause_min_ms: int = 100
    node_restart_pause_max_ms: int = 5_000
    # Nodes of a program that end before they are ready, in a row, before its tasks fail.
    node_start_tries_max: int = 3
    # A program takes a slot from another once its tasks have waited for so long without any
    # node. Smaller: two jobs on one slot restart nodes all the time.
    node_switch_wait_ms: int = 500
    # A node is stopped once its program has had no task for so long.
    node_idle_max_ms: int = 60_000
    # A program's setup command may compile; one that hangs must not hang its tasks for ever.
    setup_timeout_ms: int = 600_000
    # Bytes of values that a client keeps in memory beside the copies on disk.
    value_cache_bytes_max: int = 256 * MIB
    # Fetches under way at once from one peer, and in all.
    fetches_per_peer_max: int = 4
    fetches_max: int = 16
    # Results asked for in one request. Larger: a lost connection repeats more.
    fetch_batch_max: int = 256
    # The pause before a fetch is repeated that failed at every holder. It doubles.
    fetch_pause_min_ms: int = 100
    fetch_pause_max_ms: int = 5_000
    # Completions and failures in one report, and bytes of values in it. A report is one
    # command, and should fit into one entry of the log (entry_bytes_max).
    report_tasks_max: int = 1_000
    report_inline_bytes_max: int = 1 * MIB
    # The traceback and the end of stderr that go with the report of a failed attempt. Smaller:
    # causes without the line that matters. Larger: a job whose tasks all fail fills the log.
    failure_traceback_bytes_max: int = 4 * KIB
    failure_stderr_bytes_max: int = 2 * KIB
    # Output of one attempt that is kept: the first half and the last half of it.
    log_bytes_per_attempt_max: int = 64 * KIB

    # The last output of nodes, kept in memory for people who watch a job (`--logs`). Smaller:
    # a talkative job shows gaps there. Larger: memory.
    recent_output_bytes_max: int = 1 * MIB

    # --- stores ---

    # A store's write-ahead log of this size is copied into its file when the writer is
    # idle. Smaller: more copying of the same pages. Larger: longer pauses, once.
    wal_idle_bytes: int = 1 * MIB
    # At this size it is copied even if commits wait: 1.5 ms a MiB. Smaller: more pauses
    # under load. Larger: longer ones, and slower reads of what was written lately.
    wal_bytes_max: int = 8 * MIB
    # In quiet moments, at most this often, some rows are compared with their checksums (1 to 2
    # ms). Smaller: more work beside the rest. Larger: a rotten row is found later; at 200 rows
    # a step, a million takes an hour and a half.
    scrub_step_ms: int = 1_000
    # The rest after all rows were looked at. Smaller: a small file is read all the time.
    scrub_pause_ms: int = 3_600_000
    # How long a commit waits for another program's lock on the file (somebody's sqlite3).
    # Too small: a look at the file can stop a replica. Too large: it stands still as long.
    store_busy_timeout_ms: int = 5_000

    # Two things are deleted so long after their last use: an archive without a job that refers
    # to it, and an unpacked program without a running job. Too small: the archive of a job is
    # gone while the job is being submitted, and programs are unpacked and set up again and
    # again. Too large: disks fill with old programs.
    program_unused_max_ms: int = 3_600_000

    # --- disks ---

    # Below this much free space where its data directory is, a process says so; at most a
    # fifth of the file system. Too small: the operator learns of it too late.
    free_warn_bytes: int = 1 * GIB
    # Below this a coordinator takes no new jobs, and a client no more tasks; at most a tenth of
    # the file system. Must leave room for what running jobs write until they end.
    free_refuse_bytes: int = 256 * MIB
    # And below this it stops; at most a twentieth of the file system. Too small: its files
    # can't be closed in good order, or opened again without more space. Must hold
    # the write-ahead log twice (wal_bytes_max), and what is written within a second.
    free_stop_bytes: int = 64 * MIB

    # --- lines and bodies ---

    # One line of a node or a scheduler. A line holds at least one whole JSON value.
    line_bytes_max: int = 256 * MIB
    # One value; SQLite and 32-bit readers end at 2 GiB.
    value_bytes_max: int = 2 * GIB
    # One JSON request body between our processes (data travels in streams, not here).
    body_bytes_max: int = 80 * MIB
    # A job's archive; it is kept by every replica.
    archive_bytes_max: int = 64 * MIB
    # One frame between replicas: an entry, or a piece of catch-up.
    frame_bytes_max: int = 96 * MIB

    # --- network ---

    connect_timeout_ms: int = 2_000
    # An answer must begin within this, beyond what the request itself asked to wait.
    answer_timeout_ms: int = 10_000
    # And a coordinator's answer to a client within this at first: a coordinator that hangs
    # keeps its connections open. Too small: busy coordinators are asked twice. Too large: a
    # client waits there so long that the next leader takes it for dead.
    leader_answer_timeout_ms: int = 1_500
    # How long a command looks for a coordinator that answers before it gives up.
    find_leader_timeout_ms: int = 15_000
    # One head (first line and headers) of a request or an answer. Ours need 400 bytes;
    # browsers send some KiB.
    head_bytes_max: int = 16 * KIB
    # The body of a request that proves neither key nor token. No request that strangers may
    # make needs a body.
    unproven_body_bytes_max: int = 8 * KIB
    # Connections that a server keeps at once; fewer if the limit of open files is low.
    connections_max: int = 4_000
    # And of those on which nothing has proved the key. When another one comes, the oldest goes.
    # Too small: a crowd of strangers drops a client between its connection and its first
    # request. Too large: strangers take memory (some 20 KiB each, 40 at most) and descriptors.
    unproven_connections_max: int = 1_000
    # From connecting (or the last answer) to a whole request of such a peer. Too small:
    # slow networks are cut off. Too large: strangers keep their places for longer.
    unproven_deadline_ms: int = 10_000
    # A server closes a connection when nothing has moved on it for so long. A running handler
    # counts as moving. A peer that doesn't read its answer doesn't count.
    connection_idle_ms: int = 75_000
    # A client forgets an unused connection before any server would close it. Otherwise
    # requests meet connections that are just being closed.
    pooled_connection_idle_ms: int = 30_000
    # Unused connections that are kept for one address.
    pooled_connections_max: int = 16
    # Bytes that wait for a slow reader before its producer is paused.
    write_buffer_bytes_max: int = 256 * KIB
    # The kernel gives a connection up when sent bytes stay unacknowledged for so long (a
    # cut cable). Too small: a lossy network breaks streams. Too large: a cut is seen late.
    unacknowledged_timeout_ms: int = 4_000
    # The pause before a broken stream between replicas is opened again: the first, and
    # the longest after doubling. Both get up to half of random time on top.
    reconnect_pause_min_ms: int = 20
    reconnect_pause_max_ms: int = 1_000
    # Bytes that may wait for a replica that doesn't read. Beyond them newer frames are dropped,
    # and consensus sends them again. Must hold some entries and a piece of catch-up.
    stream_buffer_bytes_max: int = 32 * MIB


@dataclass(frozen=True, slots=True)
class Rules:
    """One version of the replicated rules; equal on every replica of a cluster.

    A difference between versions is a field here; or the code that decides asks for `version`.
    """

    version: int = 1
    # A client silent for this much log time is dead. Too small: a stalled machine
    # loses its work. Too large: its work waits for longer.
    liveness_span_ms: int = 5_000
    # A tick counts at most this much, whatever the leader's clock says. The first tick of a
    # leader that was stopped for a minute must not kill every client.
    tick_elapsed_max_ms: int = 1_000
    # Work handed out ahead to a client, for each of its nodes, in measured run time.
    ahead_us: int = 50_000
    # The least run time that a task counts for: hand-over itself costs about this.
    task_us_min: int = 100
    # Assigned tasks of one client at most, whatever their run time.
    assigned_max: int = 2_000
    # Attempts after the first, where the scheduler names none.
    retries: int = 2
    # Values that the scheduler sees (`keys`) stand in log entries.
    inline_value_bytes_max: int = 64 * KIB
    inline_task_bytes_max: int = 1 * MIB
    # Arguments of one task.
    base_bytes_max: int = 1 * MIB
    # The name of a job or a task, and each key of a task: every replica has them in memory.
    name_bytes_max: int = 1 * KIB
    # Commands in one part of an answer; the SDK cuts at 1,000.
    commands_per_part_max: int = 10_000
    # The record of an applied request is kept for this much log time, so that a
    # repetition is recognised.
    request_record_ms: int = 3_600_000
    # If there are more senders than this, the records of those who asked last are kept.
    request_records_max: int = 100_000
    # Replies in one record that the sender hasn't acknowledged; those with the highest numbers
    # stay. Too small: a sender with many requests at once can't repeat the oldest. Too large:
    # each request writes that many replies again.
    replies_per_sender_max: int = 256
    # A job is forgotten so long after its end (in log time), with its tasks and the results
    # that it kept. Too small: results vanish before they are fetched. Too large: files grow.
    ended_job_ms: int = 7 * 24 * 3_600_000
    # If more jobs have ended, the oldest are forgotten: the summary of each is in memory.
    ended_jobs_max: int = 10_000
    # A client is forgotten so long after its death (in log time). Should it come back, it joins
    # under another number. Too small: `clients` doesn't show in the morning which were lost over
    # night. Too large: containers that come and go fill the state.
    dead_client_ms: int = 24 * 3_600_000
    # If more are dead, those that died first are forgotten.
    dead_clients_max: int = 1_000
    # One tick forgets at most so many jobs, and so many dead clients: no entry may take long.
    # Too small: more of them end than are forgotten.
    forgotten_per_tick_max: int = 100
    # Every replica keeps in memory what a client says of itself. So it has limits: on the nodes
    # that it offers (and on attached ones of one name); on characters of its identity, its
    # incarnation and its address (a host's name has at most 253); on kept characters of its
    # hostname …
    client_slots_max: int = 100_000
    client_text_length_max: int = 300
    hostname_length_max: int = 255
    # … and on the names of attached nodes, and the bytes of each.
    attached_names_max: int = 100
    attached_name_bytes_max: int = 200
    # Lines that `log` keeps for a job, and bytes of each.
    job_log_lines_max: int = 10_000
    job_log_line_bytes_max: int = 4 * KIB
    # Beside those, lines about work that the job lost with dead clients. A client that starts
    # again and again must not take the place of the scheduler's own lines.
    job_loss_lines_max: int = 200
    # The last failed attempts of a job are kept, with their causes. Too small: the first
    # cause is gone before anybody looks. Too large: bytes in each mirror.
    failures_kept_max: int = 100
    # Each text of a failure's detail (traceback, tail of stderr): it stands in the log, in
    # an event and in the mirror. Our clients cut to less (failure_…_bytes_max).
    failure_text_bytes_max: int = 8 * KIB
    # A scheduler may name the events that it handles. Its job fails once none of them could
    # come for so long (in log time). Too small: the job ends before anybody sees its obstacle.
    # Too large: it seems to run, though nothing happens any more.
    idle_job_ms: int = 60_000


# The rules that this release can apply: its own, and those of the release before.
RULES_BY_VERSION: Mapping[int, Rules] = {1: Rules(1), 2: Rules(2)}
# The newest: new clusters begin with them, and clients keep to them.
RULES = RULES_BY_VERSION[2]
