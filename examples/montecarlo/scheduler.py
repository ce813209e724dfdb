#!/usr/bin/env python3
from TaskSprintCoordinator import *


class MonteCarloCoordinator(TaskSprintCoordinator):
    def init(self, seed):
        # Either the time that each task takes, or the number of points that it throws.
        base = [self.params.get("seconds", 1), self.params.get("samples")]
        alltasks = [self.start_task(name="montecarlo", base=base) for i in range(11)]

        self.final = self.start_task(
            name="merge",
            prekeys=["result" for i in range(len(alltasks))],
            pretasks=alltasks,
            keys=["result"],
        )

    def client_joined(self, cid, num_nodes):
        print("Somebody joined! %d, with %d nodes" % (cid, num_nodes))

    def client_dead(self, cid):
        print("Somebody died :( %d" % cid)

    def task_done(self, tid, values):
        if tid == self.final:
            self.finish(taskids=[tid], values=values)
        print("Task %d is done. Result: %s" % (tid, values))


MonteCarloCoordinator().start()
