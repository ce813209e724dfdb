"""Starts a chain: each task adds one to the result of the one before it."""

from TaskSprintCoordinator import *


class ChainScheduler(TaskSprintCoordinator):
    def init(self, seed):
        last = self.start_task(name="first", keys=["result"])
        for index in range(1, self.params["links"]):
            is_last = index == self.params["links"] - 1
            last = self.start_task(
                name="add",
                pretasks=[last],
                prekeys=["result"],
                keys=["result"] if is_last else [],
            )
        self.last = last

    def client_joined(self, cid):
        pass

    def client_dead(self, cid):
        pass

    def task_done(self, tid, values):
        if tid == self.last:
            self.finish(taskids=[tid], values=values)


ChainScheduler().start()
