#!/usr/bin/env python3
"""Counts words: one task for each file, then merges of eight until one is left.

A scheduler runs on every replica and must do the same on all of them, so it doesn't look
at the file system itself: the first task does.
"""

from TaskSprintCoordinator import *

FAN_IN = 8


class WordCount(TaskSprintCoordinator):
    def init(self, seed):
        self.list = self.start_task(
            name="list",
            base=[self.params.get("folder", ""), self.params.get("files", 40)],
            keys=["files"],
        )
        self.top = None

    def task_done(self, tid, values):
        if tid == self.list:
            self.log("counting %d files" % len(values["files"]))
            self.plan(values["files"])
        elif tid == self.top:
            self.finish(taskids=[tid], values=values)

    def plan(self, files):
        # All of it can be planned now: later tasks name earlier ones as pretasks.
        counts = [self.start_task(name="map", base=[path]) for path in files]
        while len(counts) > 1:
            counts = [self.merge(counts[i : i + FAN_IN]) for i in range(0, len(counts), FAN_IN)]
        self.top = self.start_task(
            name="top",
            pretasks=counts,
            prekeys=["counts"] * len(counts),
            keys=["total", "distinct", "top"],
        )

    def merge(self, tasks):
        return self.start_task(name="merge", pretasks=tasks, prekeys=["counts"] * len(tasks))


WordCount().start()
