"""Stages of draws on chance, each made from earlier ones; a stage begins when a gate opens.

It uses all that schedulers may ask for: retries, kills, timers, releases, values told.
"""

import random

from TaskSprintCoordinator import *


class Stages(TaskSprintCoordinator):
    def init(self, seed):
        self.stages, self.width = self.params["stages"], self.params["width"]
        self.stage, self.draws, self.noisy = 0, [], []
        self.told, self.sum = set(), 0
        self.final = None
        self.begin()

    def begin(self):
        self.gate = self.start_task("gate", base=[self.params["gates"], self.stage])
        self.hang = self.start_task("hang")
        self.start_timer(0.05)
        self.left = self.width + 2
        draws = []
        for number in range(self.width):
            pretasks = random.sample(self.draws, 2) if self.draws else []
            draws.append(
                self.start_task(
                    "draw",
                    base=[number, self.params["ms"]],
                    pretasks=pretasks,
                    prekeys=["drawn"] * len(pretasks),
                    keys=["drawn"] if number % 5 == 0 else [],
                )
            )
        self.noisy.append(draws[0])
        self.draws = draws

    def timer(self, timer):
        self.one_less()

    def task_done(self, tid, values):
        if tid in self.told:
            self.fail("task %d was done twice" % tid)
        self.told.add(tid)
        if tid == self.final:
            values = {"drawn": values["drawn"], "told": len(self.told), "sum": self.sum}
            self.finish(taskids=[tid], values=values)
            return
        if tid == self.gate:
            self.kill_task(self.hang)
        if values:
            self.sum ^= values["drawn"][1]
        self.one_less()

    def one_less(self):
        self.left -= 1
        if self.left == 0:
            self.stage += 1
            self.release([self.gate])
            self.log("stage %d of %d is done" % (self.stage, self.stages))
            if self.stage < self.stages:
                self.begin()
            else:
                self.end()

    def end(self):
        self.final = self.start_task(
            "gather",
            base=[len(self.draws)],
            pretasks=self.draws + self.noisy,
            prekeys=["drawn"] * len(self.draws) + ["noise"] * len(self.noisy),
            keys=["drawn"],
        )


Stages().start()
