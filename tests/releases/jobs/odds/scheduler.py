"""Jobs of what is rare: long answers, bytes, failures, schedulers that differ."""

import os

from TaskSprintCoordinator import *


class Odds(TaskSprintCoordinator):
    def init(self, seed):
        self.log("über " + self.params["kind"])
        getattr(self, self.params["kind"])()

    # An answer in three parts.
    def parts(self):
        for number in range(2_400):
            self.start_task("value", base=[number])
        self.finish()

    # Values told as bytes, as text that isn't ASCII, and as numbers that aren't short.
    def told(self):
        self.start_task("told", keys=["bytes", "text", "number"])

    # Failures: tried again, told once all tries are over, with a task that depends on it.
    def fails(self):
        first = self.start_task("fails", retries=1, timeout_ms=60_000)
        self.start_task("value", pretasks=[first], prekeys=["value"])

    # A task that takes too long.
    def slow(self):
        self.start_task("slow", retries=0, timeout=0.05)

    # The order of a set: another one in the second copy, which has another hash seed.
    def unordered(self):
        for name in {"a", "b", "c", "d", "e", "f", "g", "h"}:
            self.start_task("value", base=[name])
        self.finish()

    # It ends on each replica, as often as it is started.
    def crashes(self):
        os._exit(3)

    # Somebody cancels it.
    def waits(self):
        self.start_timer(3_600)

    def task_done(self, tid, values):
        self.finish([tid], {key: str(value) for key, value in sorted(values.items())})

    def task_failed(self, tid, error):
        if tid == 0:
            self.fail("task %d: %s" % (tid, error))


Odds().start()
