"""Starts `tasks` tasks that do nothing, and finishes when all are done."""

from TaskSprintCoordinator import *


class NoopScheduler(TaskSprintCoordinator):
    def init(self, seed):
        self.left = self.params["tasks"]
        for _ in range(self.left):
            self.start_task(name="noop")

    def client_joined(self, cid):
        pass

    def client_dead(self, cid):
        pass

    def task_done(self, tid, values):
        self.left -= 1
        if self.left == 0:
            self.finish(taskids=[], values={"tasks": self.params["tasks"]})


NoopScheduler().start()
