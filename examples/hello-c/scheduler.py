#!/usr/bin/env python3
from TaskSprintCoordinator import *


class Hello(TaskSprintCoordinator):
    def init(self, seed):
        greetings = [self.start_task("hello", base=[name]) for name in self.params["names"]]
        self.final = self.start_task(
            "join",
            base=[" and "],
            pretasks=greetings,
            prekeys=["greeting"] * len(greetings),
            keys=["greeting"],
        )

    def task_done(self, tid, values):
        if tid == self.final:
            self.finish(taskids=[tid], values=values)


Hello().start()
