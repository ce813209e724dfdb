"""Draws numbers on chance, joins them, and finishes with what came out."""

from TaskSprintCoordinator import *


class Torture(TaskSprintCoordinator):
    def init(self, seed):
        token, width = self.params["token"], self.params["width"]
        draws = [
            self.start_task(name="draw", base=[token, number, self.params["ms"]])
            for number in range(width)
        ]
        self.final = self.start_task(
            name="join", pretasks=draws, prekeys=["drawn"] * width, keys=["all"]
        )
        self.told = set()

    def task_done(self, tid, values):
        if tid in self.told:
            self.fail("task %d was done twice" % tid)
        self.told.add(tid)
        if tid == self.final:
            self.finish(taskids=[tid], values={"all": values["all"], "told": len(self.told)})


Torture().start()
